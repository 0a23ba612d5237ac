import re
from pathlib import Path

import pytest
import yaml

from fl.config import ConfigError
from fl.server.aggregators import FedAdam, FedBuff, open_aggregator
from fl.server.aggregators.registry import OURS
from tests.server.aggregators.rounds import CLIENTS, contribution, model

PLUGIN = '''
import torch
from fl.config import Section

class Largest:
    """Takes the update of most samples."""

    wants = "difference"
    updates_per_step = None
    clips = False

    class Settings(Section):
        factor: float = 1.0

    def __init__(self, settings, clients):
        if len(clients) < 2:
            raise ValueError("one client is no choice")
        self.settings, self.best = settings, None

    def extra(self, weights):
        return {}

    def add(self, update, contribution):
        if self.best is None or contribution.num_samples > self.best[0]:
            self.best = contribution.num_samples, update

    def step(self, weights):
        return {name: weights[name] + self.settings.factor * self.best[1][name] for name in weights}

    def report(self):
        return {}

    def state(self):
        return {}

    def restore(self, state):
        pass

class Bare:
    pass
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package as pip does: modules, and a dist-info folder with its entry points."""

    def _install(entry_points, package="their-package"):
        site = tmp_path / package
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "their_module.py").write_text(PLUGIN)
        (site / "their_broken_module.py").write_text("import not_installed_anywhere\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[fl.aggregators]", *lines, ""]))
        monkeypatch.syspath_prepend(site)

    return _install


def test_a_users_package_adds_one(install):
    install({"LargestAggregator": "their_module:Largest"})
    aggregator = open_aggregator("LargestAggregator", {"factor": 2}, CLIENTS)
    aggregator.add({"w": model(1)["w"]}, contribution("site-a"))
    aggregator.add({"w": model(2)["w"]}, contribution("site-c"))
    stepped = aggregator.step({"w": model(0)["w"]})["w"]
    assert (stepped == model(0)["w"] + 2 * model(2)["w"]).all()


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("LargstAggregator", {}, "aggregator: LargstAggregator is unknown; did you mean Largest"),
        ("LargestAggregator", {"facto": 1}, "aggregator_kwargs.facto: unknown key; did you mean f"),
        ("BareAggregator", {}, "BareAggregator is no class that has Settings"),
        ("NoneAggregator", {}, "their-package (their_module:None_) cannot be loaded (Attribute"),
        ("BrokenAggregator", {}, "cannot be loaded (ModuleNotFoundError: No module named 'not_in"),
    ],
)
def test_faults_of_a_users_package_are_one_line(install, name, kwargs, expected):
    install(
        {
            "LargestAggregator": "their_module:Largest",
            "BareAggregator": "their_module:Bare",
            "NoneAggregator": "their_module:None_",
            "BrokenAggregator": "their_broken_module:Largest",
        }
    )
    assert expected in refusal(name, kwargs)


def test_a_users_constructor_may_refuse_the_clients(install):
    install({"LargestAggregator": "their_module:Largest"})
    with pytest.raises(ConfigError, match="aggregator_kwargs: one client is no choice"):
        open_aggregator("LargestAggregator", {}, ["site-a"])


def test_a_name_with_two_owners_is_refused(install):
    install({"FedAvgAggregator": "their_module:Largest", "L": "their_module:Largest"})
    assert "FedAvgAggregator is claimed by fl and their-package" in refusal("FedAvgAggregator")
    install({"L": "their_module:Largest"}, package="other-package")
    assert re.search(r"L is claimed by \S+-package .* and \S+-package", refusal("L"))


def refusal(name, kwargs=None):
    with pytest.raises(ConfigError) as caught:
        open_aggregator(name, kwargs or {}, CLIENTS, file=Path("federation/server.yaml"))
    message = str(caught.value)
    assert message.startswith("federation/server.yaml: server_configs.aggregator")
    assert "\n" not in message
    return message


GIVEN = dict.fromkeys(CLIENTS, 1.0)


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("FedAvgAgregator", {}, "is unknown; did you mean FedAvgAggregator?"),
        ("Nonesuch", {}, "known here: FedAvgAggregator, FedAvgMAggregator"),
        ("FedAdamAggregator", {"server_learning_rte": 1}, "did you mean server_learning_rate?"),
        ("FedAdamAggregator", {"server_learning_rate": 0}, "should be greater than 0, not 0"),
        ("FedAdamAggregator", {"server_learning_rate": "x"}, "should be a valid number, not"),
        ("FedYogiAggregator", {"server_momentum_param_2": 1}, "should be less than 1, not 1"),
        (
            "FedAvgAggregator",
            {"client_weights_mode": "some"},
            "client_weights_mode: should be 'sample_size', 'equal' or 'given', not \"some\"",
        ),
        ("FedAvgAggregator", {"client_weights_mode": "given"}, "need each other"),
        ("FedAvgAggregator", {"client_weights": GIVEN}, "need each other"),
        (
            "FedCompassAggregator",
            {"client_weights_mode": "given", "client_weights": {**GIVEN, "site-b": -1}},
            "client_weights.site-b: should be greater than 0, not -1",
        ),
        ("FedAsyncAggregator", {"alpha": 1}, "alpha: should be less than 1, not 1"),
        ("FedAsyncAggregator", {"optimize_memory": True}, "unknown key; known here: staleness_fn"),
        (
            "FedAsyncAggregator",
            {"staleness_fn": "hinge", "staleness_fn_kwargs": {"beta": 1}},
            "staleness_fn hinge takes a and b, not beta",
        ),
        (
            "FedBuffAggregator",
            {"staleness_fn": "constant", "staleness_fn_kwargs": {"a": 1}},
            "staleness_fn constant takes nothing, not a",
        ),
        ("FedBuffAggregator", {"staleness_fn_kwargs": {"a": -1}}, "greater than or equal to 0"),
        ("FedBuffAggregator", {"K": 0}, "K: should be greater than 0, not 0"),
        ("TrimmedMeanAggregator", {"fraction": 0.5}, "should be less than 0.5, not 0.5"),
        ("MultiKrumAggregator", {"num_byzantine": 2}, "need at least 7 clients, not 6"),
        ("MultiKrumAggregator", {"keep": 7}, "need at least 8 clients, not 6"),
    ],
)
def test_a_fault_is_one_line_with_key_and_remedy(name, kwargs, expected):
    assert expected in refusal(name, kwargs)


def test_the_loop_is_told_how_many_updates_make_a_step():
    assert open_aggregator("FedAsyncAggregator", {}, CLIENTS).updates_per_step == 1
    assert open_aggregator("FedBuffAggregator", {"K": 4}, CLIENTS).updates_per_step == 4
    assert FedBuff.updates_per_step is FedAdam.updates_per_step is None
    wanting_models = [name for name in OURS if open_aggregator(name, {}, CLIENTS).wants == "model"]
    assert wanting_models == ["FedAsyncAggregator", "LatestAggregator"]


PAGE = Path(__file__).parents[3] / "docs" / "algorithms.md"


@pytest.mark.parametrize("name", OURS)
def test_the_page_has_every_setting_with_its_default(name):
    text = PAGE.read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    shown = dict(
        yaml.safe_load(f"{{{item}}}").popitem() for item in re.findall(r"`(\w+: [^`]+)`", row)
    )
    settings = OURS[name].Settings().model_dump()
    below = settings.keys() & {"client_weights", "staleness_fn_kwargs"}
    assert shown == {key: value for key, value in settings.items() if key not in below}
    assert all(f"`{key}`" in text for key in below)


@pytest.mark.parametrize(
    "name", [name for name in OURS if "client_weights" in OURS[name].Settings.model_fields]
)
def test_given_weights_are_those_of_all_clients(name):
    some = {"client_weights_mode": "given", "client_weights": {"site-a": 1}}
    assert "client_weights has no weight for site-b" in refusal(name, some)
    more = {"client_weights_mode": "given", "client_weights": {**GIVEN, "site-x": 1}}
    assert "client_weights: site-x is no client" in refusal(name, more)
