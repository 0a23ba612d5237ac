"""A site's policy against what a server may ask, and what the audit log says of it."""

import hashlib
import json
import multiprocessing
import time

import pytest
import torch
import yaml

from fl.audit_table import read_tasks
from fl.client import admission, site_code, task
from fl.client.audit import open_log, verify
from fl.client.policy import PolicyRefusal
from fl.client.request import RequestError

LOADER = {"path": "data.py", "name": "load"}
NET = {"path": "model.py", "name": "Net"}


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The site's audit log."""
    file = tmp_path / "audit.jsonl"
    monkeypatch.setenv("FL_SITE_AUDIT", str(file))
    return file


@pytest.fixture
def owner(tmp_path, monkeypatch, log):
    """Writes the site's policy."""
    file = tmp_path / "site-policy.yaml"
    monkeypatch.setenv("FL_SITE_POLICY", str(file))

    def write(**rules):
        file.write_text(yaml.safe_dump(rules))

    return write


def records(log):
    verify(log)
    return [json.loads(line) for line in log.read_text().splitlines()]


def touched_data(site):
    """Whether the loader was imported: it counts its calls from then on."""
    return any(
        getattr(module, "calls", None)
        for name, module in site_code.sys.modules.items()
        if name.startswith("fl_site_code_")
        and (getattr(module, "__file__", None) or "").startswith(str(site.code))
    )


def sha256(site, name):
    return hashlib.sha256((site.code / name).read_bytes()).hexdigest()


OTHER = "0" * 64
EVALUATE = {"operation": "evaluate"}


@pytest.mark.parametrize(
    ("rules", "asked", "expected"),
    [
        ({"experiments": ["digits"]}, {}, "experiments: model.py"),
        ({"models": []}, {}, "models: model.py: Net is not listed"),
        ({"models": [NET | {"name": "Linear"}]}, {}, "models: model.py: Net is not listed"),
        ({"models": [NET | {"sha256": OTHER}]}, {}, "models: model.py is not the file"),
        ({"loaders": []}, {}, "loaders: data.py: load is not listed"),
        ({"loaders": [LOADER | {"sha256": OTHER}]}, {}, "loaders: data.py is not the file"),
        (
            {"loaders": [LOADER | {"kwargs": {"n": 32}}]},
            {"data": ("load", {"n": 31})},
            "loaders: data.py: load is not listed with such arguments",
        ),
        ({"max_rounds": 3}, {"round": 4}, "max_rounds: 3 at most"),
        ({"sealed_updates": True}, {}, "sealed_updates: the server has its updates travel"),
        ({"metrics": ["val_loss"]}, EVALUATE, "metrics: val_accuracy, val_loss may not leave"),
    ],
)
def test_each_rule_refuses_before_any_data_is_opened(site, owner, log, rules, asked, expected):
    owner(**rules)
    error = site.answer(**asked)["error"]
    assert error["type"] == "PolicyRefusal"
    assert error["message"].startswith(f"this site's policy refuses the task: {expected}")
    assert error["traceback"] == ""
    assert not touched_data(site)
    (refused,) = records(log)
    assert (refused["event"], refused["rule"]) == ("refused", expected.split(":")[0])
    owner()
    assert "result" in site.answer(**asked)  # the rule it was, and nothing else
    assert touched_data(site)


def test_what_the_owner_lists_is_let_in(site, owner):
    (site.code / "digits").mkdir()
    for name in ("model.py", "data.py"):
        (site.code / name).rename(site.code / "digits" / name)
    model = {"path": "digits/model.py", "name": "Net", "sha256": sha256(site, "digits/model.py")}
    loader = {"path": "digits/data.py", "name": "load", "kwargs": {"n": 16}}
    owner(
        experiments=["digits"],
        models=[model],
        loaders=[loader],
        min_samples=16,
        max_rounds=1,
        max_tasks_per_day=1,
        metrics=["train_loss"],
    )
    asked = {
        "model_configs": {"model_path": "digits/model.py", "model_name": "Net"},
        "data_configs": {
            "dataset_path": "digits/data.py",
            "dataset_name": "load",
            "dataset_kwargs": {"n": 16},
        },
    }
    assert site.result(**asked)["num_samples"] == 16


def test_another_way_to_a_file_is_the_same_file(site, owner):
    """Neither `..` nor a link makes a file one of another experiment."""
    (site.code / "digits").mkdir()
    (site.code / "digits" / "link.py").symlink_to(site.code / "data.py")
    owner(experiments=["digits"])
    for path in ("digits/../data.py", "digits/link.py"):
        error = site.answer(
            model_configs={"model_path": path, "model_name": "load"},
            data_configs={"dataset_path": path, "dataset_name": "load"},
        )["error"]
        assert "experiments: data.py" in error["message"]


def test_a_file_that_was_changed_after_it_was_listed(site, owner):
    owner(loaders=[LOADER | {"sha256": sha256(site, "data.py")}])
    assert "result" in site.answer()
    with (site.code / "data.py").open("a") as file:
        file.write("# and more\n")
    assert "loaders: data.py is not the file" in site.answer()["error"]["message"]


def test_a_file_that_changes_between_its_check_and_its_use(site, owner, log):
    """What was let in and noted is what runs; the next task has what is there by then."""
    checked = sha256(site, "data.py")
    owner(loaders=[LOADER | {"sha256": checked}])
    overwrite = f"import pathlib\npathlib.Path({str(site.code / 'data.py')!r}).write_text('1')\n"
    with (site.code / "model.py").open("a") as file:  # which is imported before the loader
        file.write(overwrite)
    assert site.result()["num_samples"] == 32
    assert records(log)[0]["loader"]["sha256"] == checked != sha256(site, "data.py")
    assert "loaders: data.py is not the file" in site.answer()["error"]["message"]


@pytest.mark.parametrize("operation", ["train", "evaluate"])
def test_a_set_that_is_too_small_is_not_used_and_its_size_not_told(site, owner, log, operation):
    owner(min_samples=20)
    asked = {"operation": operation, "data": ("load", {"n": 19})}
    error = site.answer(**asked)["error"]
    assert error["message"] == ("this site's policy refuses the task: min_samples: 20 at least")
    assert "19" not in error["message"] + error["traceback"]
    assert [record["event"] for record in records(log)] == ["admitted", "refused"]
    assert "result" in site.answer(operation=operation, data=("load", {"n": 20}))


def test_metrics_that_are_not_listed_stay_at_the_site(site, owner, log):
    owner(metrics=["val_loss"])
    result = site.result(train_configs={"do_validation": True})
    assert set(result["metrics"]) == {"val_loss"}
    assert records(log)[-1]["metrics"] == ["val_loss"]


def rehearse(site, **changes):
    request = site.request(operation="rehearse", until=time.time() + 60, **changes)
    request.pop("round", None)
    return task.run(request)


def test_a_rehearsal_opens_data_and_so_has_the_same_rules(site, owner):
    owner(loaders=[])
    assert "loaders: data.py: load is not listed" in rehearse(site)["error"]["message"]
    owner(min_samples=20)
    items = {i["check"]: i for i in rehearse(site, data=("load", {"n": 19}))["result"]["items"]}
    assert "min_samples: 20 at least" in items["data"]["message"]
    assert "step" not in items


@pytest.mark.parametrize(("validates", "fits"), [(False, True), (True, False)])
def test_a_rehearsal_counts_no_set_that_no_round_uses(site, owner, validates, fits):
    owner(min_samples=20)
    few = ("load", {"n": 32, "held_out": 3})
    found = rehearse(site, data=few, train_configs={"do_pre_validation": validates})
    data = {i["check"]: i for i in found["result"]["items"]}["data"]
    assert (data["outcome"] == "ok") is fits
    assert "validate on" not in data["message"]


@pytest.mark.parametrize("rule", [{"sealed_updates": True}, {"min_noise_multiplier": 1.0}])
def test_a_rehearsal_is_refused_what_the_run_would_be(site, owner, rule):
    owner(**rule)
    assert next(iter(rule)) in rehearse(site)["error"]["message"]


def test_a_rehearsal_tells_no_more_than_a_round_would(site, owner):
    configs = {"do_validation": True}
    owner()
    told = str(rehearse(site, train_configs=configs)["result"]["items"])
    assert "loss" in told
    assert "float32" in told
    owner(metrics=[])
    told = str(rehearse(site, train_configs=configs)["result"]["items"])
    assert "loss" not in told
    assert "float32" not in told


def test_what_a_rehearsal_told_of_the_data_stands_in_the_log(site, owner, log):
    owner()
    rehearse(site, train_configs={"do_validation": True})
    told = read_tasks(log)[-1].outcome
    assert told.startswith("left: data: 32 samples of [4] float32, 2 classes")
    assert "step: one step of training, loss" in told
    assert "validation: one minibatch, loss" in told
    owner(min_samples=33)
    rehearse(site)
    told = read_tasks(log)[-1].outcome
    assert told == "left: data: this site's policy refuses the task: min_samples: 33 at least"


@pytest.mark.parametrize(
    ("rule", "outcome", "says"),
    [
        ({}, "ok", "lets the run's tasks in"),
        ({"metrics": ["train_loss"]}, "ok", "metrics that leave: train_loss"),
        ({"metrics": []}, "ok", "metrics that leave: -"),
        ({"max_rounds": 5}, "ok", "lets the run's tasks in"),
        ({"max_rounds": 4}, "warning", "lets in 4 rounds a run, and the run has 5"),
        ({"max_tasks_per_day": 4}, "warning", "lets in 4 rounds a day, and the run has 5"),
    ],
)
def test_a_rehearsal_says_what_the_policy_answers(site, owner, rule, outcome, says):
    owner(**rule)
    items = {i["check"]: i for i in rehearse(site, rounds=5)["result"]["items"]}
    assert (items["policy"]["outcome"], items["policy"]["message"].split("; ")[-1]) == (
        outcome,
        says,
    )


@pytest.mark.parametrize("told", [True, False])
def test_nor_does_a_rehearsal_say_it(site, owner, told):
    owner(error_messages=told)
    found = rehearse(site, data=("load_badly", {"fault": "raises"}))
    assert ("disk gone" in json.dumps(found)) is told


@pytest.mark.parametrize("told", [True, False])
def test_what_a_loader_says_of_data_stays_at_the_site_if_its_owner_wants(site, owner, log, told):
    owner(error_messages=told)
    with (site.code / "data.py").open("a") as file:
        file.write("def leak():\n    raise KeyError('patient 7')\n")
    error = site.answer(data=("leak", {}))["error"]
    assert error["type"] == "DataError"
    assert ("patient 7" in json.dumps(error)) is told
    assert "patient 7" in records(log)[-1]["reason"]


def test_a_day_has_so_many_tasks_and_a_refused_one_is_none(site, owner, log):
    owner(max_tasks_per_day=2, max_rounds=5)
    assert "max_rounds" in site.answer(round=6)["error"]["message"]
    site.result(operation="progress", job="job-1")
    site.result()
    site.result(operation="evaluate")
    assert "max_tasks_per_day: 2 at most" in site.answer(round=2)["error"]["message"]
    assert records(log)[-1]["rule"] == "max_tasks_per_day"
    site.result(operation="progress", job="job-1")


def test_yesterdays_tasks_do_not_count(site, owner, log, monkeypatch):
    owner(max_tasks_per_day=1)
    with monkeypatch.context() as yesterday:
        yesterday.setattr("fl.client.audit._now", lambda: "2020-01-01T00:00:00+00:00")
        site.result()
    site.result()
    assert "max_tasks_per_day" in site.answer()["error"]["message"]


def _begin(request, barrier):
    barrier.wait(30)
    try:
        admission.Task(request).begin()
    except PolicyRefusal:
        return


def test_two_workers_are_not_both_the_last_of_the_day(site, owner, log):
    owner(max_tasks_per_day=3)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    workers = [context.Process(target=_begin, args=(site.request(), barrier)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    events = [record["event"] for record in records(log)]
    assert (events.count("admitted"), events.count("refused")) == (3, 3)


def test_tasks_cannot_be_counted_without_a_log(site, owner, monkeypatch):
    owner(max_tasks_per_day=3)
    monkeypatch.delenv("FL_SITE_AUDIT")
    assert "keeps no log to count in" in site.answer()["error"]["message"]


@pytest.mark.parametrize("text", [None, "max_rouds: 3\n", "- a list\n", "", "a: {b"])
def test_a_policy_that_cannot_be_read_refuses_and_tells_the_owner_alone(
    site, owner, log, tmp_path, text
):
    if text is not None:
        (tmp_path / "site-policy.yaml").write_text(text)
    error = site.answer()["error"]
    assert error["message"].endswith("policy: the site's policy cannot be read by its tasks")
    assert str(tmp_path) not in json.dumps(error)
    assert not touched_data(site)
    (refused,) = records(log)
    assert str(tmp_path / "site-policy.yaml") in refused["reason"]


@pytest.mark.parametrize(
    ("rules", "blank"),
    [
        ({"loaders": None}, "loaders"),
        ({"min_samples": None}, "min_samples"),
        ({"loaders": [LOADER | {"kwargs": None}]}, "loaders.0: kwargs"),
        ({"models": [NET | {"sha256": None}]}, "models.0: sha256"),
        ({"secure_aggregation": {"min_sites": 3, "peers": None}}, "secure_aggregation: peers"),
    ],
)
def test_a_rule_whose_value_is_commented_out_does_not_allow_everything(
    site, owner, log, rules, blank
):
    owner(**rules)
    assert site.answer()["error"]["type"] == "PolicyRefusal"
    assert not touched_data(site)
    (refused,) = records(log)
    assert refused["rule"] == "policy"
    assert f": {blank} says nothing: leave it out" in refused["reason"]


def test_without_a_policy_or_a_log_the_sites_own_code_is_free(site, monkeypatch):
    for name in ("FL_SITE_POLICY", "FL_SITE_AUDIT"):
        monkeypatch.delenv(name, raising=False)
    assert "result" in site.answer()


def test_the_log_says_who_ran_what_and_what_left(site, log):
    result = site.result(job="job-1", run_id="run-1", train_configs={"do_validation": True})
    admitted, ended = records(log)
    assert (admitted["event"], ended["event"]) == ("admitted", "ended")
    assert admitted["task"] == ended["task"]
    assert admitted["loader"] == LOADER | {"sha256": sha256(site, "data.py"), "kwargs": "{}"}
    assert admitted["model"]["sha256"] == sha256(site, "model.py")
    for record in (admitted, ended):
        assert [record[name] for name in ("operation", "client_id", "run_id", "job", "round")] == [
            "train", "a", "run-1", "job-1", 1
        ]  # fmt: skip
    assert ended["update"] == result["update"]["digest"]
    assert ended["num_samples"] == 32
    assert set(ended["metrics"]) == set(result["metrics"])


@pytest.mark.parametrize(
    ("asked", "training"),
    [
        ({}, {"train_batch_size": 32, "num_local_epochs": 1}),
        ({"steps": 3}, {"train_batch_size": 32, "num_local_epochs": 1, "steps": 3}),
        (
            {
                "train_configs": {
                    "mode": "step",
                    "num_local_steps": 2,
                    "train_batch_size": 1,
                    "local_dp": {"noise_multiplier": 0.5},
                }
            },
            {
                "train_batch_size": 1,
                "num_local_steps": 2,
                "local_dp": {"noise_multiplier": 0.5, "clip_norm": 1.0, "delta": 1e-5},
            },
        ),
    ],
)
def test_the_log_says_how_a_site_trains(site, log, asked, training):
    site.answer(**asked)
    assert records(log)[0]["training"] == training


def test_a_server_hides_no_argument_in_the_log_behind_others(site, log):
    arguments = {"root": "x" * 300, "patient": 17}
    site.answer(data=("load", arguments))
    text = repr(arguments)
    noted = f"{text[:200]}... ({len(text)} characters, sha256 {digest(text)})"
    assert records(log)[0]["loader"]["kwargs"] == noted


@pytest.mark.parametrize(
    ("asked", "events"),
    [
        ({"operation": "progress", "job": "job-1"}, ["admitted", "ended"]),
        ({"operation": "shell"}, ["admitted", "failed"]),
        ({"hurry": True}, ["refused"]),
        ({"client_id": "x" * 10**6 + "/"}, ["refused"]),
        ({"data": ("load_badly", {"fault": "raises"})}, ["admitted", "failed"]),
        ({"data_configs": {"dataset_path": "../x.py", "dataset_name": "f"}}, ["refused"]),
    ],
)
def test_every_task_leaves_lines(site, log, asked, events):
    site.answer(**asked)
    assert [record["event"] for record in records(log)] == events
    assert log.stat().st_size < 5000


@pytest.mark.parametrize(
    "asked",
    [
        {"model_configs": {"model_path": "base.safetensors", "model_name": "Net"}},
        {"sources": {"base.safetensors": ""}},
    ],
)
def test_a_file_that_is_too_large_for_code_is_not_read(site, log, asked):
    with (site.code / "base.safetensors").open("wb") as file:
        file.truncate(site_code.MOST_BYTES + 1)
    said = "base.safetensors: is no file of code, of 4,000,000 bytes at most"
    assert site.answer(**asked)["error"]["message"] == said
    (refused,) = records(log)
    assert (refused["event"], refused["reason"]) == ("refused", said)


@pytest.mark.parametrize("request_", [None, [], "text", {}, {"operation": ["train"]}])
def test_what_is_no_request_is_refused_and_noted(log, request_):
    with pytest.raises((TypeError, KeyError, RequestError)), admission.admitted(request_):
        pass
    assert [record["event"] for record in records(log)] == ["refused"]


def test_a_task_that_cannot_be_noted_is_not_done(site, log, tmp_path):
    log.mkdir()
    assert "cannot be written" in site.answer()["error"]["message"]
    assert not touched_data(site)
    log.rmdir()
    with open_log(log):
        pass
    assert "result" in site.answer()


SHIPPED = {
    "model.py": "from torch import nn\ndef Net():\n    return nn.Linear(4, 2)\n",
    "shipped/data.py": (
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def load(n):\n    return TensorDataset(torch.ones(n, 4), torch.ones(n).long()), None\n"
    ),
}
SHIPS = {
    "sources": SHIPPED,
    "data_configs": {
        "dataset_path": "shipped/data.py",
        "dataset_name": "load",
        "dataset_kwargs": {"n": 7},
    },
}


def digest(source):
    return hashlib.sha256(source.encode()).hexdigest()


def ask(site):
    weights = {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}
    return site.answer(weights=weights, **SHIPS)


@pytest.mark.parametrize("listed", ["all", [digest(source) for source in SHIPPED.values()]])
def test_source_that_the_owner_lets_in_is_run_and_noted_and_not_kept(site, owner, log, listed):
    """In place of a file of the site's, and of none."""
    owner(shipped_source=listed)
    assert ask(site)["result"]["num_samples"] == 7
    admitted = records(log)[0]
    assert admitted["shipped"] == sorted(SHIPPED)
    assert admitted["loader"]["sha256"] == digest(SHIPPED["shipped/data.py"])
    assert not (site.code / "shipped").exists()
    # The next task has the site's own again.
    assert site.result()["num_samples"] == 32
    assert "shipped" not in records(log)[2]


@pytest.mark.parametrize("listed", [None, "none", [], [digest(SHIPPED["model.py"])], [OTHER]])
def test_source_that_the_owner_has_not_let_in_is_not_run(site, owner, log, listed):
    owner(**({} if listed is None else {"shipped_source": listed}))
    error = ask(site)["error"]
    path = "shipped/data.py" if listed == [digest(SHIPPED["model.py"])] else "model.py"
    refused = f"shipped_source: {path} (sha256 {digest(SHIPPED[path])}) is not listed"
    assert error["type"] == "PolicyRefusal"
    assert refused in error["message"]
    assert records(log)[0]["event"] == "refused"
    assert not touched_data(site)


def test_a_site_without_a_policy_runs_no_source_of_a_servers(site):
    assert "shipped_source" in ask(site)["error"]["message"]


def test_what_the_site_has_anyway_needs_no_leave(site, owner, log):
    owner()
    own = {name: (site.code / name).read_text() for name in ("model.py", "data.py")}
    assert "result" in site.answer(sources=own)
    assert "shipped" not in records(log)[0]


def test_shipped_code_is_held_against_the_other_rules_too(site, owner):
    owner(shipped_source="all", loaders=[LOADER])
    assert "loaders: shipped/data.py: load is not listed" in ask(site)["error"]["message"]
    owner(shipped_source="all", models=[NET | {"sha256": sha256(site, "model.py")}])
    assert "models: model.py is not the file" in ask(site)["error"]["message"]
    # A path alone means the site's own file.
    owner(shipped_source="all", models=[NET])
    assert "models: model.py is not the file" in ask(site)["error"]["message"]
    owner(shipped_source="all", models=[NET | {"sha256": digest(SHIPPED["model.py"])}])
    assert "result" in ask(site)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"../x.py": ""}, "outside"),
        ({"/etc/x.py": ""}, "outside"),
        ({"data.py": "#" * 256_001}, "at most 256000 characters"),
        ({f"{number}.py": "" for number in range(5)}, "at most 4 items"),
        ({"data.py": 1}, "valid string"),
        ({"data.py": "raise OSError('no disk')"}, "cannot be imported: OSError: no disk (data.py"),
    ],
)
def test_source_that_is_no_file_of_an_experiment_is_refused(site, owner, sources, expected):
    owner(shipped_source="all")
    assert expected in site.answer(sources=sources)["error"]["message"]


def test_source_anywhere_else_in_a_request_is_text(site, log, tmp_path):
    """The schema has no other place for it; in a file's name or an argument it is not evaluated."""
    marker = tmp_path / "executed"
    source = f"open({str(marker)!r}, 'w').close()\ndef load(): pass\n"
    for asked in (
        {"dataset_source": source},
        {"data_configs": {"dataset_path": source, "dataset_name": "load"}},
        {
            "data_configs": {
                "dataset_path": "data.py",
                "dataset_name": "load",
                "dataset_source": source,
            }
        },
        {"data": (source, {})},
        {"data": ("__import__", {"name": "os"})},
    ):
        assert "error" in site.answer(**asked)
    assert not marker.exists()
