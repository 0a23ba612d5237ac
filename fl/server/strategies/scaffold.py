"""SCAFFOLD: control variates against client drift, the server's side."""

from __future__ import annotations

from fl.server.strategies.bounds import require_positive
from fl.server.strategies.steps import State, add_delta, last, wide
from fl.tensors import Tensors


def scaffold(
    weights: Tensors,
    delta: Tensors,
    state: State,
    *,
    control_delta: Tensors,
    participation: float,
    learning_rate: float = 1.0,
) -> tuple[Tensors, State]:
    """SCAFFOLD's server (Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1, lines 16-17).

    x <- x + rate mean_S(y_i - x), c <- c + |S|/N mean_S(c_i+ - c_i), both over the participants S.

    Args:
        weights: The global model x.
        delta: Plain mean of the participants' differences y_i - x.
        state: `{"control"}`, the server's control variate c, or `{}` at first: zero.
        control_delta: Plain mean of what the participants' control variates changed by
            (`fl.client.algorithms.new_control`): trainable parameters only.
        participation: Updates in the means over all N clients, |S|/N, positive: beyond 1 where a
            fast client has answered more than once.
        learning_rate: The server's, positive; the paper's experiments have 1.

    Returns:
        The new model and state; its tensors are float32, or float64 where the weights are.

    Raises:
        ValueError: A hyper-parameter is out of range, or the state is another model's.
    """
    require_positive(learning_rate=learning_rate, participation=participation)
    control = {
        name: last(state, "control", name, wide(change)).add(wide(change), alpha=participation)
        for name, change in control_delta.items()
    }
    return add_delta(weights, delta, size=learning_rate), {"control": control}
