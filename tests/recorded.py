"""A run's folder as the real recorder leaves it, of events that a test makes up."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from fl.config import Client, DataConfigs, Federation, ServerConfigs, SharedClientConfigs
from fl.record import Record
from fl.server import evaluation
from fl.server.events import (
    ClientFailed,
    RoundEnded,
    RoundStarted,
    SiteChanged,
    SiteEvaluation,
    UpdateReceived,
)
from fl.server.sites import Task
from fl.transport import Ref


def federation(names, runs, **settings):
    """A federation of local clients that records below `runs`."""
    data = DataConfigs(dataset_path="d.py", dataset_name="load")
    model = {"model_path": "m.py", "model_name": "Net"}
    return Federation(
        client_configs=SharedClientConfigs.model_validate({"model_configs": model}),
        server_configs=ServerConfigs.model_validate(
            {
                "num_clients": len(names),
                "num_global_epochs": 5,
                "round_deadline": 60,
                "logging_output_dirname": str(runs),
                **settings,
            }
        ),
        clients=[
            Client.model_construct(endpoint_id="local", client_id=name, data_configs=data)
            for name in names
        ],
    )


@dataclass
class Run:
    """A run that a test records, round by round.

    Attributes:
        names: Its clients.
        runs: The folder of runs.
        settings: Of its server.
    """

    names: list
    runs: object
    settings: dict = field(default_factory=dict)

    def __post_init__(self):
        self.record = Record.begin(federation(self.names, self.runs, **self.settings), "code", {})
        self.folder = self.record.folder

    def begin(self, number, sites=None):
        """Send a round out."""
        for name in self.names if sites is None else sites:
            task = Task(name, number - 1, number, f"{name}.{number}", 0.0, Future())
            self.record.sent(task, None, Ref("inline", {}, 1000, "0" * 64))
            self.record(SiteChanged(name, "queued"))
        self.record(RoundStarted(number, list(self.names)))

    def answer(self, number, name, train=1.0, **metrics):
        """One site's update."""
        self.record(SiteChanged(name, "ready"))
        seconds = {"get": 0.1, "load": 0.1, "train": train, "validate": 0.1, "put": 0.2}
        return UpdateReceived(
            round=number,
            client_id=name,
            num_samples=100,
            steps=10,
            staleness=0,
            metrics={"train_loss": 1.0 / number, "val_accuracy": 1 - 0.5 / number, **metrics},
            seconds=seconds,
            size=1000,
            sent=0.2,
            arrived=0.7 + sum(seconds.values()),
            after=0.9 + sum(seconds.values()),
        )

    def fail(self, number, name, reason, state="lost"):
        """One site gives nothing."""
        self.record(SiteChanged(name, state, reason))
        failure = ClientFailed(number, name, reason)
        self.record(failure)
        return failure

    def end(self, number, updates, failures=(), **aggregator):
        """The round's account, with the aggregator's own numbers."""
        seconds = {"broadcast": 0.1, "submit": 0.1, "wait": 2.0, "collect": 0.2, "aggregate": 0.1}
        total = max([3.0, *(update.after for update in updates)])
        self.record(
            RoundEnded(
                round=number,
                loss=1.0 / number,
                accuracy=1 - 0.6 / number,
                updates=list(updates),
                failures=list(failures),
                bytes_down=1000 * len(self.names),
                bytes_up=sum(update.size for update in updates),
                seconds={**seconds, "evaluate": 0.3, "total": total},
                aggregator=aggregator,
            )
        )

    def evaluate(self, number, **accuracies):
        """What sites found of a round's model, all on as many samples."""
        sites = {name: SiteEvaluation(1 - found, found, 10) for name, found in accuracies.items()}
        self.record(evaluation.mean(number, number + 1, sites))

    def play(self, number):
        """A round in which everybody answers."""
        self.begin(number)
        self.end(number, [self.answer(number, name) for name in self.names])

    def close(self):
        """What the end of its process does."""
        self.record._lock.close()
