import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl.client import trainer
from fl.client.built import TrainingError
from fl.config import Client, DataConfigs, TrainConfigs
from fl.endpoints.base import EndpointError
from fl.endpoints.virtual import Trained, Training, VirtualSite, VirtualSites
from fl.tensors import decode, encode
from fl.transport import GoneError, Ref
from fl.transport.memory import MemoryTransport

CLIENT = Client(
    endpoint_id="local", client_id="a", data_configs=DataConfigs(dataset_path="d", dataset_name="l")
)


class Doubling:
    def steps(self, request, seconds_per_step):
        return request["steps"]

    def train(self, request, weights, steps):
        return Trained({name: 2 * tensor for name, tensor in weights.items()}, 7, {"loss": 1.0})


@pytest.fixture
def world():
    """Sites, their transport, and a way to send site a 10 steps."""

    def _world(**kwargs):
        transport = MemoryTransport()
        site = VirtualSite(**{"queue": lambda _: 100.0, "seconds_per_step": 2.0, **kwargs})
        sites = VirtualSites({"a": site}, Doubling(), transport)
        model = transport.put(encode({"w": torch.ones(2)})).to_json()
        request = {"operation": "train", "client_id": "a", "job": "j", "steps": 10, "model": model}
        return sites, transport, lambda: sites.submit(CLIENT, request)

    return _world


def test_a_task_takes_its_queue_its_transfers_and_its_steps(world):
    sites, transport, send = world(transfer_seconds=5.0)
    future = send()
    sites.wait(129.9)
    assert not future.done() and sites.now() == 129.9
    future.add_done_callback(lambda _: sites.wake())
    sites.wait(1000)
    assert sites.now() == 130
    result = future.result()["result"]
    assert result["seconds"] == {"get": 5.0, "train": 20.0, "put": 5.0}
    assert (result["num_samples"], result["steps"]) == (7, 10)
    update = decode(transport.get(Ref.from_json(result["update"])))
    assert update["w"].tolist() == [2, 2]


def test_waiting_ends_when_it_is_woken_before(world):
    sites, _, _ = world()
    sites.wake()
    sites.wait(50)
    assert sites.now() == 0
    sites.wait(50)
    assert sites.now() == 50


def test_training_happens_when_the_answer_is_due_and_its_failure_is_the_answer(world):
    sites, transport, send = world()
    future = send()
    transport.close()
    sites.wait(1000)
    assert future.result()["error"]["type"] == GoneError.__name__


def test_an_outage_loses_tasks_and_delays_what_is_sent_in_it(world):
    sites, _, send = world(offline=[(50.0, 400.0)])
    lost = send()
    assert sites.health(CLIENT) is None
    sites.wait(60)
    assert sites.health(CLIENT) == "its endpoint is offline until 400 s"
    delayed = send()
    sites.wait(459)
    assert not delayed.done()  # due at 400 + 100 + 20 s
    sites.wait(1)
    assert delayed.done() and not lost.done() and sites.now() == 520


def test_a_site_is_back_once_no_outage_holds():
    site = VirtualSite(lambda _: 0.0, offline=[(10.0, 20.0), (20.0, 30.0), (25.0, 40.0)])
    assert [site.online_from(moment) for moment in (9.0, 10.0, 20.0, 40.0)] == [9, 40, 40, 40]


def test_a_probe_finds_a_task_that_runs_and_none_that_died(world):
    sites, _, send = world(offline=[(110.0, 400.0)])
    probe = {"operation": "progress", "client_id": "a", "job": "j"}
    send()
    queued = sites.submit(CLIENT, probe)
    sites.wait(99)
    assert not queued.done()  # it is in the same queue
    sites.wait(2)
    assert queued.result()["result"] == {"recorded": True, "alive": True}
    sites.wait(20)
    after = sites.submit(CLIENT, probe)
    sites.wait(400)
    assert after.result()["result"]["alive"] is False


def test_questions_are_answered_at_once_failures_too(world):
    sites, _, _ = world()
    assert sites.call(lambda: 3).result() == 3

    def fail():
        raise EndpointError("no")

    with pytest.raises(EndpointError, match="no"):
        sites.call(fail).result()


def request_of(**more):
    configs = {"train_batch_size": 4, "optim_args": {"lr": 0.1}, "num_local_epochs": 2}
    return {
        "client_id": "a",
        "round": 1,
        "steps": None,
        "learning_rate_scale": 1.0,
        "update": "difference",
        "model_configs": {"seed": 42},
        "train_configs": TrainConfigs(**configs).model_dump(mode="json"),
        **more,
    }


@pytest.fixture
def training():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 3, generator=generator)
    model = nn.Linear(3, 2)
    dataset = TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
    return (
        Training(model, {"a": dataset}),
        dataset,
        {k: v.clone() for k, v in model.state_dict().items()},
    )


def test_training_is_the_products_own(training):
    work, dataset, weights = training
    assert work.steps(request_of(), 1.0) == 6  # 2 epochs of 3 minibatches
    assert work.steps(request_of(steps=9), 1.0) == 9
    timed = TrainConfigs(mode="seconds", num_local_seconds=7.0).model_dump(mode="json")
    assert work.steps(request_of(train_configs=timed), 2.0) == 4
    done = work.train(request_of(), weights, 6)
    same = work.train(request_of(), weights, 6)
    model = nn.Linear(3, 2)
    model.load_state_dict({name: weights[name] + done.update[name] for name in weights})
    after = trainer.evaluate(model, dataset, TrainConfigs()).loss
    model.load_state_dict(weights)
    assert after < trainer.evaluate(model, dataset, TrainConfigs()).loss
    assert done.num_samples == 10
    torch.testing.assert_close(same.update, done.update)


def configured(**changes):
    """Whole batches, a learning rate of 0.1."""
    configs = TrainConfigs(**{"train_batch_size": 10, "optim_args": {"lr": 0.1}, **changes})
    return request_of(train_configs=configs.model_dump(mode="json"))


def test_the_global_model_pulls_where_the_trainer_is_fedprox(training):
    """In the second step, by mu times what the first one was."""
    work, _, weights = training
    proximal = configured(trainer="FedProxTrainer", mu=2.0)
    pulled = work.train(proximal, weights, 2).update
    first, free = (work.train(configured(), weights, steps).update for steps in (1, 2))
    torch.testing.assert_close(pulled, {n: free[n] - 0.1 * 2.0 * first[n] for n in free})


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"trainer": "ScaffoldTrainer"}, "ScaffoldTrainer"),
        ({"local_dp": {"noise_multiplier": 1.0}}, "local_dp"),
    ],
)
def test_what_it_does_not_do_is_refused(training, settings, missing):
    work, _, weights = training
    with pytest.raises(TrainingError, match=f"a virtual site has no {missing}"):
        work.train(configured(**settings), weights, 1)


def test_the_learning_rate_is_scaled_and_a_model_sent_where_it_is_wanted(training):
    work, _, weights = training
    full = work.train(request_of(), weights, 1).update
    half = work.train(request_of(learning_rate_scale=0.5), weights, 1).update
    torch.testing.assert_close(half, {name: change / 2 for name, change in full.items()})
    model = work.train(request_of(update="model"), weights, 1).update
    torch.testing.assert_close(model, {name: weights[name] + full[name] for name in weights})


def test_a_site_that_is_sent_ahead_has_its_block_for_the_next_task_and_not_for_ever(world):
    sites, _, send = world(held_seconds=30.0)
    ahead = {"operation": "enter", "client_id": "a", "job": "ahead"}
    entered = sites.submit(CLIENT, ahead)
    sites.wait(100)
    assert entered.done()
    at_once = send()
    sites.wait(20)
    assert at_once.done() and sites.now() == 120
    sites.submit(CLIENT, ahead)
    sites.wait(131)  # its block ends at 250
    late = send()
    sites.wait(119)
    assert not late.done()  # it has the queue before it again
    sites.wait(1)
    assert late.done()
