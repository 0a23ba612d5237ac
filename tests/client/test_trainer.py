import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from fl.client import devices
from fl.client.built import TrainingError
from fl.client.trainer import evaluate, train
from fl.config import TrainConfigs
from fl.errors import FederationError


def dataset(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


def linear():
    torch.manual_seed(1)
    return nn.Linear(4, 2)


def test_training_learns_and_counts():
    model, configs = linear(), TrainConfigs(num_local_epochs=5, optim_args={"lr": 0.5})
    before = evaluate(model, dataset(), configs)
    done = train(model, dataset(), configs, seed=3)
    after = evaluate(model, dataset(), configs)
    assert after.loss < before.loss
    assert after.accuracy > 0.9
    assert (done.steps, done.num_samples) == (10, 64)


def test_one_step_of_sgd_is_the_gradients():
    configs = TrainConfigs(
        mode="step", num_local_steps=1, train_batch_size=64, optim_args={"lr": 0.1}
    )
    model, reference = linear(), linear()
    train(model, dataset(), configs, seed=0)
    inputs, labels = dataset().tensors
    nn.functional.cross_entropy(reference(inputs), labels).backward()
    for moved, start in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, start - 0.1 * start.grad)


def test_the_same_seed_gives_the_same_bytes():
    models = [linear() for _ in range(2)]
    for model in models:
        train(model, dataset(), TrainConfigs(), seed=9)
    assert torch.equal(models[0].weight, models[1].weight)


def test_steps_go_past_the_end_of_an_epoch():
    configs = TrainConfigs(mode="step", num_local_steps=5, train_batch_size=32)
    assert train(linear(), dataset(), configs, seed=0).steps == 5


def test_accuracy_and_loss_are_means_over_samples():
    model = linear()
    whole = evaluate(model, dataset(50), TrainConfigs(val_batch_size=50))
    pieces = evaluate(model, dataset(50), TrainConfigs(val_batch_size=7))
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-5)
    assert pieces.accuracy == whole.accuracy


def test_clipping_bounds_the_step():
    configs = TrainConfigs(
        mode="step", num_local_steps=1, optim_args={"lr": 1.0}, clip_grad=True, clip_value=1e-3
    )
    model, start = linear(), linear()
    train(model, dataset(), configs, seed=0)
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    )
    assert moved.norm() <= 1.001e-3


@pytest.mark.parametrize(
    ("unit", "rates"), [("step", [1, 0.1, 0.01, 0.001]), ("epoch", [1, 1, 0.1, 0.1])]
)
def test_the_learning_rate_follows_its_schedule_and_starts_anew(unit, rates, monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args: (seen.append(self.param_groups[0]["lr"]), step(self, *args))[1],
    )
    configs = TrainConfigs(
        num_local_epochs=2,
        optim_args={"lr": 1.0},
        lr_scheduler="ExponentialLR",
        lr_scheduler_args={"gamma": 0.1},
        lr_scheduler_unit=unit,
    )
    model = linear()
    for _ in range(2):  # two rounds of two epochs of two steps
        train(model, dataset(), configs, seed=0)
    assert seen == pytest.approx(rates * 2)


def test_mixed_precision_trains_close_to_full_precision():
    models = {}
    for amp in (None, "bfloat16"):
        models[amp] = linear()
        train(models[amp], dataset(), TrainConfigs(optim_args={"lr": 0.5}, amp=amp), seed=0)
    full, mixed = models[None].weight, models["bfloat16"].weight
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, full)
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0.01)


class Infinite(nn.Linear):
    """Its outputs are finite, its gradients are not."""

    def forward(self, inputs):
        return super().forward(inputs) + torch.sqrt((self.weight * 0).sum())


@pytest.fixture
def scaler(monkeypatch):
    """What float16 has on cuda: gradients are scaled, here until they overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monkeypatch.setattr(devices, "scaler", lambda *_: scaler)
    return scaler


def test_a_step_that_overflows_is_done_with_a_lower_scale(scaler):
    inputs, labels = dataset().tensors
    model, reference = linear(), linear()
    configs = TrainConfigs(train_batch_size=64, optim_args={"lr": 0.1})
    assert train(model, TensorDataset(1000 * inputs, labels), configs, seed=0).steps == 1
    assert scaler.get_scale() < 2.0**127
    nn.functional.cross_entropy(reference(1000 * inputs), labels).backward()
    torch.testing.assert_close(model.weight, reference.weight - 0.1 * reference.weight.grad)


def test_gradients_that_are_never_finite_are_named(scaler):
    with pytest.raises(TrainingError, match="gradients of step 1 are no finite numbers"):
        train(Infinite(4, 2), dataset(), TrainConfigs(), seed=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optim": "SDG"}, "no class 'SDG'"),
        ({"optim_args": {"learning_rate": 1}}, "do not fit SGD"),
        ({"loss_fn": "CrossEntropy"}, "no class 'CrossEntropy'"),
        ({"device": "cuda:77"}, "is not here"),
        ({"device": "quantum"}, "none that torch knows"),
        ({"amp": "float16"}, "needs a cuda device"),
        ({"lr_scheduler": "Cosine"}, "lr_scheduler has no class 'Cosine'"),
        ({"lr_scheduler": "StepLR"}, "lr_scheduler_args do not fit StepLR"),
        (
            {"lr_scheduler": "LambdaLR", "lr_scheduler_args": {"lr_lambda": "0.9 ** epoch"}},
            "lr_scheduler_args do not fit LambdaLR",
        ),
        ({"lr_scheduler": "ReduceLROnPlateau"}, "waits for a metric"),
        ({"train_batch_size": 100, "train_drop_last": True}, "no minibatch"),
        ({"optim_args": {"lr": float("inf")}, "num_local_epochs": 3}, "lower optim_args.lr"),
    ],
)
def test_settings_that_cannot_work_say_so(settings, expected):
    with pytest.raises(FederationError, match=expected):
        train(linear(), dataset(), TrainConfigs(**settings), seed=0)


class Broken(Dataset):
    """Ten samples, of which one is not as the first."""

    def __init__(self, odd):
        self.odd = odd

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index < 7:
            return torch.zeros(4), 0
        if self.odd == "damaged":
            raise OSError("image file is truncated")
        return {"larger": (torch.zeros(5), 0), "three": (torch.zeros(4), 0, 1)}[self.odd]


@pytest.mark.parametrize("odd", ["damaged", "larger", "three"])
def test_a_sample_that_cannot_be_read_is_named(odd):
    configs = TrainConfigs(train_batch_size=10, val_batch_size=10)
    for use in (
        lambda: train(linear(), Broken(odd), configs, seed=0),
        lambda: evaluate(linear(), Broken(odd), configs),
    ):
        with pytest.raises(TrainingError, match="samples make no minibatch of inputs and labels"):
            use()


def test_a_loss_over_numbers_has_no_accuracy_beyond_1():
    """Labels of one number a sample are no class indices: each was compared with each."""
    numbers = TensorDataset(torch.zeros(64, 4), torch.zeros(64, 1))
    configs = TrainConfigs(loss_fn="BCEWithLogitsLoss")
    assert evaluate(nn.Linear(4, 1), numbers, configs).accuracy == 0


def test_a_model_of_one_number_a_sample_is_trained_and_evaluated():
    torch.manual_seed(1)
    inputs, labels = dataset().tensors
    numbers = TensorDataset(inputs, labels.float())
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    configs = TrainConfigs(loss_fn="BCEWithLogitsLoss", num_local_epochs=5, optim_args={"lr": 0.5})
    before = evaluate(model, numbers, configs)
    train(model, numbers, configs, seed=0)
    after = evaluate(model, numbers, configs)
    assert after.loss < before.loss
    assert after.accuracy == 0
