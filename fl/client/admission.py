"""Whether a task may begin, and the lines that it leaves in the site's audit log.

A task is let in, or refused, before anything of the site is opened, and a line says which. When it
ends, another line says what leaves. Where no line can be written, nothing is done.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl.client import site_code
from fl.client.audit import AuditLog, open_log
from fl.client.policy import Code, Policy, PolicyRefusal, site_policy
from fl.client.request import EvaluateRequest, RehearseRequest, TrainRequest, read
from fl.config import DataConfigs, ModelConfigs, TrainConfigs

OPENS_DATA: dict[str, type[EvaluateRequest]] = {
    "train": TrainRequest,
    "evaluate": EvaluateRequest,
    "rehearse": RehearseRequest,
}
"""The operations that a policy is about. The others touch no data of the site's."""
EVALUATION = ("val_accuracy", "val_loss")
"""What an evaluation answers with, by the names that training has for it."""
DAY_SECONDS = 24 * 3600.0
BUDGETS = {
    "epoch": "num_local_epochs",
    "step": "num_local_steps",
    "seconds": "num_local_seconds",
}
"""Where `train_configs` has what each of its modes counts."""
OF_DATA = ("data", "step", "validation")
"""What a rehearsal tries that tells of data."""
TEXT = 200
"""Characters of a text that stand in a line; of a longer one its length and digest, too."""


class Task:
    """A task that was let in.

    Args:
        request: What the server asked for: anything.

    Attributes:
        wanted: The request: once it is let in, as read where it is about data.
    """

    def __init__(self, request: Any) -> None:
        self.wanted = request
        self._file = os.environ.get("FL_SITE_AUDIT")
        self._facts = {"task": uuid.uuid4().hex[:12], **_named(request)}

    def begin(self) -> dict[str, bytes]:
        """Refuse the task, or let it in.

        Returns:
            The server's source that it may run, by path.

        Raises:
            PolicyRefusal: The policy does not allow it.
            FederationError: It is not understood, names code that is not here, or no line can be
                written.
        """
        try:
            policy = site_policy()
            self.wanted = _understood(self.wanted)
            sources = _let_in(policy, self.wanted)
            with site_code.shipped(sources):
                code = _examine(policy, self.wanted) | _noted(sources)
        except Exception as error:
            self.refuse(error)
            raise
        self._facts |= code
        self._admit(policy)
        return sources

    def refuse(self, error: Exception) -> None:
        """Note that the task is refused, for its owner's eyes with the cause."""
        rule = error.rule if isinstance(error, PolicyRefusal) else "request"
        cause = error.__cause__ if rule == "policy" else error
        self.note("refused", rule=rule, reason=_text(str(cause)))

    def note(self, event: str, **facts: Any) -> None:
        """Write a line, where the site keeps a log."""
        if self._file:
            with open_log(Path(self._file)) as log:
                log.append({"event": event, **self._facts, **facts})

    def ended(self, result: dict[str, Any]) -> None:
        """Note what leaves."""
        update = result.get("update", {}).get("digest")
        leaving = [*result.get("metrics", ()), *({"loss", "accuracy", "metric"} & result.keys())]
        facts = {
            "update": update,
            "num_samples": result.get("num_samples"),
            "metrics": leaving,
            "told": _told(result.get("items", ())),
            "identity": result.get("bundle", {}).get("identity"),
            "survivors": result.get("survivors"),
            "shares": {what: sorted(result.get(what, {})) for what in ("own", "pairwise")},
        }
        if not any(facts["shares"].values()):
            del facts["shares"]
        self.note("ended", **{name: value for name, value in facts.items() if value})

    def _admit(self, policy: Policy) -> None:
        """Count and write under one lock, or two workers would both be the last of the day."""
        limit = policy.max_tasks_per_day if self._facts["operation"] in OPENS_DATA else None
        if not self._file:
            if limit is not None:
                raise PolicyRefusal("max_tasks_per_day", "this site keeps no log to count in")
            return
        with open_log(Path(self._file)) as log:
            if limit is None or _admitted_today(log) < limit:
                log.append({"event": "admitted", **self._facts})
                return
        refusal = PolicyRefusal("max_tasks_per_day", f"{limit} at most")
        self.refuse(refusal)
        raise refusal


@contextmanager
def admitted(request: Any) -> Iterator[Task]:
    """Let a task in, and note how it ends.

    Args:
        request: What the server asked for: anything.

    Yields:
        The task, whose `ended` is told what leaves.

    Raises:
        PolicyRefusal: The site's policy does not allow it.
        FederationError: It is not understood, names code that is not here, or no line can be
            written.
    """
    task = Task(request)
    with site_code.steady():
        sources = task.begin()
        try:
            with site_code.shipped(sources):
                yield task
        except PolicyRefusal as refusal:
            task.refuse(refusal)
            raise
        except Exception as error:
            task.note("failed", error=type(error).__name__, reason=_text(str(error)))
            raise


def _told(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a rehearsal says of the data, or that a rule kept them from it."""
    found = [item for item in items if item["check"] in OF_DATA]
    return [_text(f"{item['check']}: {item['message']}") for item in found]


def _understood(request: Any) -> Any:
    """What is about data as its schema has it; the rest as it came, for its operation to read."""
    schema = OPENS_DATA.get(request["operation"])
    return request if schema is None else read(schema, request)


def _let_in(policy: Policy, wanted: Any) -> dict[str, bytes]:
    """Source that the server ships, and that is not the site's own anyway."""
    if not isinstance(wanted, EvaluateRequest):
        return {}
    shipped = site_code.foreign(wanted.sources)
    policy.require_source(shipped)
    return shipped


def _noted(sources: dict[str, bytes]) -> dict[str, Any]:
    return {"shipped": [_text(path) for path in sorted(sources)]} if sources else {}


def _examine(policy: Policy, wanted: Any) -> dict[str, Any]:
    """Hold a request against every rule that needs no data; returns what is noted of it."""
    if not isinstance(wanted, EvaluateRequest):
        return {}
    model, loader = _model(wanted.model_configs), _loader(wanted.data_configs)
    policy.require_code("models", model)
    policy.require_code("loaders", loader)
    own = _own(wanted.train_configs)
    for code in own.values():
        policy.require_code("models", code)
    if isinstance(wanted, TrainRequest):
        policy.require_round(wanted.round)
    # What the run would be refused, its rehearsal is.
    if isinstance(wanted, TrainRequest | RehearseRequest):
        policy.require_noise(wanted.train_configs)
        policy.require_sealing(sealed=wanted.sealing is not None)
        policy.require_masks(_threshold(wanted))
    else:
        policy.require_metrics([*EVALUATION, *(["val_metric"] if "metric" in own else [])])
    ours = {name: _line(code) for name, code in own.items()}
    return {"model": _line(model), "loader": _line(loader), **ours, **_training(wanted)}


def _training(wanted: EvaluateRequest) -> dict[str, Any]:
    """Of how few samples an update may tell, and with how much noise."""
    if not isinstance(wanted, TrainRequest):
        return {}
    configs = wanted.train_configs
    noted = {"train_batch_size", BUDGETS[configs.mode], "dp_sgd", "local_dp"}
    training = configs.model_dump(include=noted, exclude_none=True)
    return {"training": training | ({"steps": wanted.steps} if wanted.steps else {})}


def _threshold(wanted: EvaluateRequest) -> int | None:
    """Sites in the sum that the update would be seen in, or None where it would be seen alone."""
    if isinstance(wanted, RehearseRequest):
        return wanted.threshold
    masking = wanted.masking if isinstance(wanted, TrainRequest) else None
    return masking.threshold if masking is not None else None


def _model(configs: ModelConfigs) -> Code:
    return _code(configs.model_path, configs.model_name, configs.model_kwargs)


def _loader(configs: DataConfigs) -> Code:
    return _code(configs.dataset_path, configs.dataset_name, configs.dataset_kwargs)


def _code(named: str, name: str, kwargs: Mapping[str, Any]) -> Code:
    path, sha256 = site_code.identify(named)
    return Code(path, name, kwargs, sha256, shipped=named in site_code.let_in())


def _own(configs: TrainConfigs) -> dict[str, Code]:
    """The experiment's own loss and metric: code of the site's, as its model is."""
    named = {
        "loss": (configs.loss_fn_path, configs.loss_fn_name, configs.loss_fn_kwargs),
        "metric": (configs.metric_path, configs.metric_name, {}),
    }
    found = {}
    for what, (path, name, kwargs) in named.items():
        if path is not None and name is not None:
            found[what] = _code(path, name, kwargs)
    return found


def _line(code: Code) -> dict[str, Any]:
    arguments = _text(repr(dict(code.kwargs)))
    return {"path": code.path, "name": _text(code.name), "sha256": code.sha256, "kwargs": arguments}


def _named(request: Any) -> dict[str, Any]:
    """Whose task it is, by the server's own names."""
    names = ("operation", "client_id", "run_id", "round", "job")
    given = request if isinstance(request, dict) else {}
    facts = {name: given.get(name) for name in names}
    return {
        name: value if isinstance(value, int) and abs(value) < 2**53 else _text(str(value))
        for name, value in facts.items()
        if value is not None or name == "operation"
    }


def _text(text: str) -> str:
    """A text in short; the server, which orders it, hides nothing behind its begin."""
    if len(text) <= TEXT:
        return text
    sha256 = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    return f"{text[:TEXT]}... ({len(text)} characters, sha256 {sha256})"


def _admitted_today(log: AuditLog) -> int:
    return sum(
        record.get("event") == "admitted" and record.get("operation") in OPENS_DATA
        for record in log.since(DAY_SECONDS)
    )
