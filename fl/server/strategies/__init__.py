"""What the server does with updates, as pure functions: one paper family a module.

Every algorithm is a weight for each update, so that a running mean can take it in and forget it,
and a step from the weights and that mean. Nothing here changes its inputs or keeps anything;
`fl.server.aggregators` holds what a run of them has to remember.

| algorithm   | an update's weight  | the mean is of           | the step                        |
|-------------|---------------------|--------------------------|---------------------------------|
| FedAvg      | samples, or 1       | differences              | `fedavg`                        |
| FedAvgM ... | samples, or 1       | differences              | `fedavgm`, `fedadagrad`, ...    |
| FedNova     | samples, or 1       | differences by their     | `add_delta` by their mean       |
|             |                     | `fednova_norm`s          |                                 |
| SCAFFOLD    | 1                   | differences and controls | `scaffold`                      |
| FedAsync    | `fedasync_weight`   | models                   | `mix` at the weights' share     |
| FedBuff     | `fedbuff_weight`    | differences              | `add_delta` by `fedbuff_size`   |
| FedCompass  | `fedcompass_weight` | differences              | `add_delta` by the weights' sum |
| FedQueue    | `fedqueue_weight`   | differences              | `add_delta`                     |
| Pace        | the client's share  | differences              | `add_delta` by `pace_size`      |
| Latest      | `latest_weight`     | all clients' last models | the mean                        |

A difference is what training added to the model that its client had received
(`fl.client.algorithms.delta`): those of updates that started from different models can be summed,
and one of a parameter that nobody trained is exactly zero. FedAsync and Latest alone take the
client's model itself. Tensors keep their dtypes; half precision is stepped in float32 and rounded
once. Integers and booleans (counters such as batch norm's) have no difference: it is the value, and
is taken from the mean. Complex tensors go where their two parts would, but under the adaptive
server optimizers and SCAFFOLD, which are of real numbers.
"""

from __future__ import annotations

from fl.server.strategies.fedcompass import (
    ArrivalGroup,
    Assignment,
    fedcompass_assign,
    fedcompass_weight,
)
from fl.server.strategies.fednova import fednova_norm
from fl.server.strategies.fedqueue import (
    QueueEstimate,
    fedqueue_admits,
    fedqueue_budget,
    fedqueue_learning_rate,
    fedqueue_weight,
    observe_queue,
)
from fl.server.strategies.latest import latest_weight
from fl.server.strategies.optimizers import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from fl.server.strategies.pace import pace_close, pace_size, pace_steps
from fl.server.strategies.scaffold import scaffold
from fl.server.strategies.speed import seconds_per_step
from fl.server.strategies.staleness import (
    Discount,
    constant,
    exponential,
    fedasync_rate,
    fedasync_weight,
    fedbuff_size,
    fedbuff_weight,
    harmonic,
    hinge,
    polynomial,
)
from fl.server.strategies.steps import State, add_delta, each, mix

__all__ = [
    "ArrivalGroup",
    "Assignment",
    "Discount",
    "QueueEstimate",
    "State",
    "add_delta",
    "constant",
    "each",
    "exponential",
    "fedadagrad",
    "fedadam",
    "fedasync_rate",
    "fedasync_weight",
    "fedavg",
    "fedavgm",
    "fedbuff_size",
    "fedbuff_weight",
    "fedcompass_assign",
    "fedcompass_weight",
    "fednova_norm",
    "fedqueue_admits",
    "fedqueue_budget",
    "fedqueue_learning_rate",
    "fedqueue_weight",
    "fedyogi",
    "harmonic",
    "hinge",
    "latest_weight",
    "mix",
    "observe_queue",
    "pace_close",
    "pace_size",
    "pace_steps",
    "polynomial",
    "scaffold",
    "seconds_per_step",
]
