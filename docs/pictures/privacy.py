"""Make privacy.svg: what client-level privacy costs, as accuracy on digits against its epsilon.

python docs/pictures/privacy.py

A hundred clients of fourteen digits each train for twenty rounds, with the product's own local
training; the noise is the server's (DPFedAvgAggregator), or each client's own (local_dp). Every
noise is tried three times, by other seeds and other noise. It takes nine minutes of one core and
prints what it draws.
"""

import os
import statistics
from pathlib import Path

TOP = Path(__file__).parents[2]
os.environ.setdefault("FL_SITE_CODE", str(TOP / "examples"))

import altair  # noqa: E402  (after the folder of models and loaders is known)
import torch  # noqa: E402  (as above)
import vl_convert  # noqa: E402  (as above)

from fl import privacy  # noqa: E402  (as above)
from fl.client import built, data, local_dp, trainer  # noqa: E402  (as above)
from fl.client.algorithms import delta  # noqa: E402  (as above)
from fl.config import DataConfigs, LocalDP, ModelConfigs, TrainConfigs  # noqa: E402  (as above)
from fl.server.aggregators import Contribution, open_aggregator, private  # noqa: E402  (as above)

CLIENTS = [f"site-{number}" for number in range(100)]
ROUNDS, SEEDS = 20, (0, 1, 2)
SILENT = 1e-9
"""Noise that no accuracy shows: what clipping alone costs."""
SERVER, CLIENT = "at the server", "at each client"
NOISES = {SERVER: (SILENT, 0.5, 1.0, 2.0, 4.0, 8.0), CLIENT: (0.05, 0.1, 0.2, 0.4, 0.8)}
CLIP_NORM, DELTA = 2.0, 1e-3
TRAIN = TrainConfigs(
    num_local_epochs=5,
    optim_args={"lr": 0.1, "momentum": 0.9},
    train_batch_size=16,
    clip_grad=True,  # or a model of much noise diverges
)


def accuracy(place: str, noise: float, seed: int) -> float:
    """The last model's, on images that no client has."""
    if place == SERVER:
        settings = {"clip_norm": CLIP_NORM, "noise_multiplier": noise, "delta": DELTA}
        aggregator = open_aggregator("DPFedAvgAggregator", settings, CLIENTS)
    else:
        equal = {"client_weights_mode": "equal"}
        aggregator = open_aggregator("FedAvgAggregator", equal, CLIENTS)
    configs = ModelConfigs(model_path="digits/model.py", model_name="DigitsCNN", seed=seed)
    model = built.build_model(configs)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sets = [digits(number, seed) for number in range(len(CLIENTS))]
    for step in range(ROUNDS):
        for number, (client, (train_set, _)) in enumerate(zip(CLIENTS, sets, strict=True)):
            model.load_state_dict(weights)
            done = trainer.train(
                model, train_set, TRAIN, seed=(seed * ROUNDS + step) * 100 + number
            )
            told = Contribution(client, done.num_samples, done.steps, 0, 1 / len(CLIENTS))
            trained = model.state_dict()
            update = (
                delta(trained, weights)
                if place == SERVER
                else local_dp.noised(trained, weights, at_client(noise))
            )
            aggregator.add(update, told)
        weights = aggregator.step(weights)
    model.load_state_dict(weights)
    return trainer.evaluate(model, sets[0][1], TRAIN).accuracy


def at_client(noise: float) -> LocalDP:
    """The setting of a client's own noise."""
    return LocalDP(noise_multiplier=noise, clip_norm=CLIP_NORM, delta=DELTA)


def epsilon(place: str, noise: float) -> float:
    """What all rounds cost a client."""
    if place == SERVER:
        return private.epsilon(noise, ROUNDS, DELTA)
    return privacy.epsilon([local_dp.spent(at_client(noise))] * ROUNDS, DELTA)


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
    for place, noises in NOISES.items():
        for noise in noises:
            found = [accuracy(place, noise, seed) for seed in SEEDS]
            row = {"noise": place, "noise_multiplier": noise, "median": statistics.median(found)}
            row |= {"least": min(found), "most": max(found)}
            row["epsilon"] = epsilon(place, noise) if noise > SILENT else None
            rows.append(row)
            print(row, flush=True)  # noqa: T201  (a script)
    Path(__file__).with_suffix(".svg").write_text(draw(rows))


def draw(rows: list[dict]) -> str:
    """The picture: medians, and the range of the seeds."""
    silent = [row for row in rows if row["epsilon"] is None]
    base = altair.Chart(altair.Data(values=[row for row in rows if row not in silent])).encode(
        x=altair.X(
            "epsilon:Q",
            scale=altair.Scale(type="log"),
            title=f"ε after {ROUNDS} rounds at δ = {DELTA:g}",
        ),
        color=altair.Color("noise:N", title="noise is added"),
    )
    accuracies = altair.Scale(domain=[0, 1])
    spread = base.mark_rule(strokeWidth=2).encode(
        y=altair.Y("least:Q", title="accuracy, median and range of 3 seeds", scale=accuracies),
        y2="most:Q",
    )
    labels = base.mark_text(align="left", dx=6, dy=10).encode(
        y="median:Q", text=altair.Text("noise_multiplier:Q")
    )
    clipped = altair.Chart(altair.Data(values=silent)).mark_rule(strokeDash=[4, 4])
    chart = spread + base.mark_line(point=True).encode(y="median:Q") + labels
    chart += clipped.encode(y="median:Q")
    return vl_convert.vegalite_to_svg(chart.properties(width=520, height=260).to_dict())


if __name__ == "__main__":
    main()
