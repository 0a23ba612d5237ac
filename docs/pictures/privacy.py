"""Make privacy.svg: what client-level privacy costs, as accuracy on digits against the noise.

python docs/pictures/privacy.py

A hundred clients of fourteen digits each train for twenty rounds, with the product's own local
training and DPFedAvgAggregator; for each noise three times, by other seeds and other noise. It
takes five minutes of one core and prints what it draws.
"""

import os
import statistics
from pathlib import Path

TOP = Path(__file__).parents[2]
os.environ.setdefault("FL_SITE_CODE", str(TOP / "examples"))

import altair  # noqa: E402  (after the folder of models and loaders is known)
import torch  # noqa: E402  (as above)
import vl_convert  # noqa: E402  (as above)

from fl.client import data, trainer  # noqa: E402  (as above)
from fl.client.algorithms import delta  # noqa: E402  (as above)
from fl.config import DataConfigs, ModelConfigs, TrainConfigs  # noqa: E402  (as above)
from fl.server.aggregators import Contribution, open_aggregator  # noqa: E402  (as above)
from fl.server.aggregators.private import epsilon  # noqa: E402  (as above)

CLIENTS = [f"site-{number}" for number in range(100)]
ROUNDS, SEEDS = 20, (0, 1, 2)
NOISES = (0.5, 1.0, 2.0, 4.0, 8.0)
SILENT = 1e-9
"""Noise that no accuracy shows: what clipping alone costs."""
CLIP_NORM, DELTA = 2.0, 1e-3
TRAIN = TrainConfigs(
    num_local_epochs=5,
    optim_args={"lr": 0.1, "momentum": 0.9},
    train_batch_size=16,
    clip_grad=True,  # or a model of much noise diverges
)


def accuracy(noise: float, seed: int) -> float:
    """The last model's, on images that no client has."""
    settings = {"clip_norm": CLIP_NORM, "noise_multiplier": noise, "delta": DELTA}
    aggregator = open_aggregator("DPFedAvgAggregator", settings, CLIENTS)
    configs = ModelConfigs(model_path="digits/model.py", model_name="DigitsCNN", seed=seed)
    model = trainer.build_model(configs)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sets = [digits(number, seed) for number in range(len(CLIENTS))]
    for step in range(ROUNDS):
        for number, (client, (train_set, _)) in enumerate(zip(CLIENTS, sets, strict=True)):
            model.load_state_dict(weights)
            done = trainer.train(
                model, train_set, TRAIN, seed=(seed * ROUNDS + step) * 100 + number
            )
            told = Contribution(client, done.num_samples, done.steps, 0, 1 / len(CLIENTS))
            aggregator.add(delta(model.state_dict(), weights), told)
        weights = aggregator.step(weights)
    model.load_state_dict(weights)
    return trainer.evaluate(model, sets[0][1], TRAIN).accuracy


def digits(client: int, seed: int) -> data.Sets:
    """A client's digits."""
    kwargs = {"num_clients": len(CLIENTS), "client_id": client, "seed": seed}
    return data.datasets(
        DataConfigs(dataset_path="digits/data.py", dataset_name="get_digits", dataset_kwargs=kwargs)
    )


def main() -> None:
    """Train, print, draw."""
    torch.set_num_threads(1)
    rows = []
    for noise in (SILENT, *NOISES):
        found = [accuracy(noise, seed) for seed in SEEDS]
        spent = epsilon(noise, ROUNDS, DELTA) if noise > SILENT else None
        privacy = "no noise" if spent is None else f"{noise:g} (ε {spent:.3g})"
        rows.append(
            {
                "privacy": privacy,
                "median": statistics.median(found),
                "least": min(found),
                "most": max(found),
            }
        )
        print(rows[-1], flush=True)  # noqa: T201  (a script)
    Path(__file__).with_suffix(".svg").write_text(draw(rows))


def draw(rows: list[dict]) -> str:
    """The picture: medians, and the range of the seeds."""
    order = [row["privacy"] for row in rows]
    base = altair.Chart(altair.Data(values=rows)).encode(
        x=altair.X(
            "privacy:N",
            sort=order,
            title=f"noise_multiplier (ε after {ROUNDS} rounds at δ = {DELTA:g})",
            axis=altair.Axis(labelAngle=-30),
        )
    )
    accuracies = altair.Scale(domain=[0, 1])
    spread = base.mark_rule(strokeWidth=2).encode(
        y=altair.Y("least:Q", title="accuracy, median and range of 3 seeds", scale=accuracies),
        y2="most:Q",
    )
    chart = spread + base.mark_line(point=True).encode(y="median:Q")
    return vl_convert.vegalite_to_svg(chart.properties(width=520, height=260).to_dict())


if __name__ == "__main__":
    main()
