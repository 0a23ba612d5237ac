"""The schema of server.yaml and clients.yaml.

This is the one place where a key, its default and its meaning stand.

The layout grew out of APPFL's two files (`client_configs`, `server_configs`, `clients[]`), so
their owners find their keys where they left them. Everything is strict: an unknown key, a wrong
type or a missing file is refused in one line that names the file, the key, what was expected and
the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from uuid import UUID

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fl.appfl import translate
from fl.errors import FederationError
from fl.overrides import override, read_yaml


class ConfigError(FederationError):
    """A configuration file says something that cannot be meant."""


class Section(BaseModel):
    """One mapping in a file: strict types, no unknown key, immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


LARGEST_FILE = 1_000_000
"""Characters that a file may come to."""

PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Arguments = dict[str, Any]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class TrainConfigs(Section):
    """How a client trains: the trainer's settings, the same for all unless a client says more."""

    trainer: Literal["VanillaTrainer", "FedProxTrainer", "ScaffoldTrainer"] = "VanillaTrainer"
    """Minibatch descent on the local loss: plain, with FedProx's pull or SCAFFOLD's controls."""
    mu: Annotated[float, Field(ge=0)] | None = None
    """How strongly FedProxTrainer pulls to the global model; its paper tries 0.001 to 1."""
    mode: Literal["epoch", "step", "seconds"] = "epoch"
    """Whether the local budget is counted in epochs, in minibatch steps or in seconds."""
    num_local_epochs: PositiveInt = 1
    """Epochs a round, with `mode: epoch`."""
    num_local_steps: PositiveInt = 100
    """Minibatch steps a round, with `mode: step`."""
    num_local_seconds: Seconds = 60.0
    """Seconds of training a round, with `mode: seconds`; such rounds do not repeat exactly."""
    block_margin: Seconds = 30.0
    """Seconds before its block's end at which a task stops training, to send what it has."""
    optim: str = "SGD"
    """Name of a class in `torch.optim`."""
    optim_args: Arguments = {"lr": 0.01}
    """Its keyword arguments."""
    lr_scheduler: str | None = None
    """Name of a class in `torch.optim.lr_scheduler`; it starts anew in every round."""
    lr_scheduler_args: Arguments = {}
    """Its keyword arguments."""
    lr_scheduler_unit: Literal["step", "epoch"] = "epoch"
    """Whether it advances after every local minibatch step or epoch."""
    loss_fn: str = "CrossEntropyLoss"
    """Name of a class in `torch.nn`."""
    loss_fn_path: str | None = None
    """Path of a Python file, relative to `site_code`, with a loss to take instead."""
    loss_fn_name: str | None = None
    """The class in it: called with outputs and labels, it returns the minibatch's mean loss."""
    loss_fn_kwargs: Arguments = {}
    """Keyword arguments of the loss."""
    metric_path: str | None = None
    """Path of a Python file, relative to `site_code`, with a metric of the validation set."""
    metric_name: str | None = None
    """The function in it: of labels and outputs, as NumPy arrays of the whole set, it returns a
    number, reported as `val_metric` and `pre_val_metric`."""
    clip_grad: bool = False
    """Clip the gradient's norm before each step."""
    clip_value: Annotated[float, Field(gt=0)] = 1.0
    """The largest norm that `clip_grad` leaves."""
    clip_norm: Annotated[float, Field(gt=0)] = 2.0
    """Which norm: 2 for Euclid's."""
    do_validation: bool = False
    """Evaluate on the client's validation set after training."""
    do_pre_validation: bool = False
    """Evaluate the global model on it before training, too."""
    train_batch_size: PositiveInt = 32
    """Samples a training minibatch."""
    val_batch_size: PositiveInt = 256
    """Samples a validation minibatch; it changes speed, not results."""
    train_data_shuffle: bool = True
    """Shuffle the training set every epoch, from the run's seed."""
    train_drop_last: bool = False
    """Leave out the last, smaller minibatch."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load data, 0 for none."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:0, xpu, mps; or auto, the first of cuda, xpu, mps, cpu."""
    amp: Literal["bfloat16", "float16"] | None = None
    """Mixed precision: train in this type where that is safe; float16 on cuda alone."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfigs:
        if (self.loss_fn_path is None) != (self.loss_fn_name is None):
            raise ValueError("loss_fn_path and loss_fn_name need each other")
        if (self.metric_path is None) != (self.metric_name is None):
            raise ValueError("metric_path and metric_name need each other")
        if (self.trainer == "FedProxTrainer") != (self.mu is not None):
            raise ValueError("mu is what FedProxTrainer needs, and no other trainer")
        if self.trainer == "ScaffoldTrainer":
            self._require_plain_descent()
        return self

    def _require_plain_descent(self) -> None:
        """SCAFFOLD takes a step for a gradient: its controls fit no other optimizer."""
        settings = {name for name, value in self.optim_args.items() if value}
        if self.optim != "SGD" or settings - {"lr", "momentum", "foreach", "fused"}:
            raise ValueError("ScaffoldTrainer needs optim SGD with lr and momentum alone")
        if self.amp == "float16":
            raise ValueError("ScaffoldTrainer takes no amp float16, whose scaler leaves out steps")


class ModelConfigs(Section):
    """The model, by name: a file that server and sites hold in their `site_code` folders."""

    model_path: str
    """Path of the Python file, relative to `site_code`."""
    model_name: str
    """The class or function in it that returns a `torch.nn.Module`."""
    model_kwargs: Arguments = {}
    """Its keyword arguments."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the initial weights, and of each client's shuffling with its name and the round."""


class DataConfigs(Section):
    """A data set, by name: a loader file that the site's owner put into its `site_code` folder."""

    dataset_path: str
    """Path of the Python file, relative to the site's `site_code`."""
    dataset_name: str
    """The function in it that returns the training and the validation set."""
    dataset_kwargs: Arguments = {}
    """Its keyword arguments."""


class ConnectorConfigs(Section):
    """What the ProxyStore connector is built from."""

    endpoints: Annotated[list[UUID], Field(min_length=1)]
    """ProxyStore endpoint ids of the server and every client."""


class ProxystoreConfigs(Section):
    """Moving models through ProxyStore endpoints instead of through Globus Compute."""

    enable_proxystore: bool = False
    """Off, models travel inside the task and must stay below its 10 MB."""
    connector_type: Literal["EndpointConnector"] = "EndpointConnector"
    """The ProxyStore connector."""
    connector_configs: ConnectorConfigs | None = None
    """Its arguments."""

    @model_validator(mode="after")
    def _needs_endpoints(self) -> ProxystoreConfigs:
        if self.enable_proxystore and self.connector_configs is None:
            raise ValueError("enable_proxystore needs connector_configs.endpoints")
        return self


class GlobusComputeConfigs(Section):
    """How the server reaches Globus Compute."""

    function_id: UUID
    """Id of the one remote function, as `fl register` printed it."""
    environment_files: list[str] = []
    """KEY=VALUE files with credentials and folders, read where the environment lacks them."""


class ServerCommConfigs(Section):
    """The server's ways to its clients."""

    globus_compute_configs: GlobusComputeConfigs | None = None
    """Needed as soon as one client has an endpoint id."""
    proxystore_configs: ProxystoreConfigs = ProxystoreConfigs()
    """How models move."""


class ClientCommConfigs(Section):
    """A client's ways to the server."""

    proxystore_configs: ProxystoreConfigs = ProxystoreConfigs()
    """How models move."""


class EarlyStopping(Section):
    """When a run ends before its last round; see `fl.server.stopping`."""

    patience: PositiveInt
    """Rounds in a row whose loss at the server is no better than the best before."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how much a loss must be lower to be better."""


class ServerConfigs(Section):
    """The round loop."""

    num_clients: PositiveInt
    """How many clients clients.yaml must list: a guard against the wrong pair of files."""
    num_global_epochs: PositiveInt
    """Rounds."""
    scheduler: str = "SyncScheduler"
    """Who trains when, and when the server steps: a name of docs/algorithms.md, or of an entry
    point."""
    scheduler_kwargs: Arguments = {}
    """Its settings; `fl.server.schedulers.open_scheduler` checks both."""
    aggregator: str = "FedAvgAggregator"
    """What makes the next model of updates: a name of docs/algorithms.md, or of an entry point."""
    aggregator_kwargs: Arguments = {}
    """Its settings; `fl.server.aggregators.open_aggregator` checks both."""
    device: str = "cpu"
    """Where the server evaluates."""
    round_deadline: Seconds = 3600.0
    """Seconds from the start of a round until its missing clients are late; a client's task is
    given up after twice as long."""
    min_clients: PositiveInt | None = None
    """Updates that a round needs to count; all of them when not set."""
    norm_bound: Annotated[float, Field(gt=0)] | None = 100.0
    """How many times larger than the global model, and than the median of the sites' last updates,
    an update's Euclidean norm may be before it is dropped; null takes any."""
    server_validation: bool = False
    """Evaluate the global model at the server after each round, on `data_configs`."""
    data_configs: DataConfigs | None = None
    """The server's held-out set: the loader's second value."""
    early_stopping: EarlyStopping | None = None
    """End the run once the loss at the server no longer falls."""
    logging_output_dirname: str = "runs"
    """Folder that gets a folder for every run, relative to where fl-run is started."""
    logging_output_filename: FileName | None = None
    """What the name of a run's folder begins with."""
    comm_configs: ServerCommConfigs = ServerCommConfigs()
    """How the server reaches its clients."""

    @model_validator(mode="after")
    def _consistent(self) -> ServerConfigs:
        if self.server_validation and self.data_configs is None:
            raise ValueError("server_validation needs data_configs, the server's held-out set")
        if self.early_stopping is not None and not self.server_validation:
            raise ValueError("early_stopping needs server_validation: it watches the loss there")
        if self.min_clients is not None and self.min_clients > self.num_clients:
            raise ValueError(f"min_clients must be at most num_clients ({self.num_clients})")
        return self


class SharedClientConfigs(Section):
    """What every client shares."""

    train_configs: TrainConfigs = TrainConfigs()
    """Training settings."""
    model_configs: ModelConfigs
    """The model."""


class ServerFile(Section):
    """server.yaml."""

    client_configs: SharedClientConfigs
    """What every client shares."""
    server_configs: ServerConfigs
    """The round loop."""


class Client(Section):
    """One site of the federation."""

    endpoint_id: UUID | Literal["local"]
    """Globus Compute endpoint id, or `local` for a process on this machine."""
    client_id: FileName
    """The site's name in logs and metrics."""
    train_configs: Arguments = {}
    """What differs from `client_configs.train_configs` here, such as the device."""
    data_configs: DataConfigs
    """The site's data."""
    comm_configs: ClientCommConfigs = ClientCommConfigs()
    """The site's ways."""


class ClientsFile(Section):
    """clients.yaml."""

    clients: Annotated[list[Client], Field(min_length=1)]
    """The sites."""

    @model_validator(mode="after")
    def _unique(self) -> ClientsFile:
        names = [client.client_id for client in self.clients]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"client_id {name!r} stands twice")
        return self


class Federation(Section):
    """Both files, checked against each other; what `fl-run` runs."""

    client_configs: SharedClientConfigs
    server_configs: ServerConfigs
    clients: list[Client]
    notes: Annotated[list[str], Field(exclude=True)] = []
    """What the files say that has no effect, each in a line."""

    def train_configs(self, client: Client) -> TrainConfigs:
        """A client's training settings: the shared ones with its own laid over them."""
        shared = self.client_configs.train_configs.model_dump()
        return TrainConfigs.model_validate({**shared, **client.train_configs})


@dataclass(frozen=True)
class Files:
    """Where a federation is described.

    Attributes:
        server: Path of server.yaml.
        clients: Path of clients.yaml.
        overrides: KEY=VALUE texts that go over them.
    """

    server: Path
    clients: Path
    overrides: tuple[str, ...] = ()

    def load(self) -> Federation:
        """The federation; see `load_federation`."""
        return load_federation(self.server, self.clients, self.overrides)


def load_federation(server: Path, clients: Path, overrides: Sequence[str] = ()) -> Federation:
    """Read server.yaml and clients.yaml.

    Args:
        server: Path of server.yaml.
        clients: Path of clients.yaml.
        overrides: KEY=VALUE texts, as `fl.overrides.override` takes them: those that begin with
            `clients` go over clients.yaml, others over server.yaml.

    Returns:
        The federation.

    Raises:
        ConfigError: A file is missing or is not YAML, or a key is unknown, missing, of the wrong
            type, or at odds with another.
    """
    of_clients = [text for text in overrides if text.partition("=")[0].split(".")[0] == "clients"]
    of_server = [text for text in overrides if text not in of_clients]
    notes: list[str] = []
    server_file = _load(server, ServerFile, of_server, notes)
    clients_file = _load(clients, ClientsFile, of_clients, notes)
    configs, sites = server_file.server_configs, clients_file.clients
    if configs.num_clients != len(sites):
        raise ConfigError(
            f"{server}: server_configs.num_clients is {configs.num_clients}, "
            f"but {clients} lists {len(sites)}"
        )
    remote = [site.client_id for site in sites if site.endpoint_id != "local"]
    if remote and configs.comm_configs.globus_compute_configs is None:
        raise ConfigError(
            f"{server}: server_configs.comm_configs.globus_compute_configs is missing; "
            f"{remote[0]} is reached through Globus Compute (deploy.yml writes it)"
        )
    _require_one_way(configs, sites, server, clients)
    federation = Federation(
        client_configs=server_file.client_configs,
        server_configs=configs,
        clients=sites,
        notes=notes,
    )
    for index, site in enumerate(sites):
        try:
            federation.train_configs(site)
        except ValidationError as error:
            place = ("clients", index, "train_configs")
            where = _where(clients, of_clients)
            raise ConfigError(explain(where, TrainConfigs, error, place)) from error
    return federation


def _require_one_way(
    configs: ServerConfigs, sites: list[Client], server: Path, clients: Path
) -> None:
    """A model that went one way cannot be fetched by another."""
    ours = configs.comm_configs.proxystore_configs.enable_proxystore
    for index, site in enumerate(sites):
        theirs = site.comm_configs.proxystore_configs.enable_proxystore
        if theirs != ours:
            raise ConfigError(
                f"{clients}: clients.{index}.comm_configs.proxystore_configs.enable_proxystore is "
                f"{str(theirs).lower()}, but the server's in {server} is {str(ours).lower()}; "
                "models travel one way for all"
            )


def read_federation(file: Path) -> Federation:
    """Read a federation that was written as one file, as a run's folder has it.

    Args:
        file: Path of config.yaml.

    Returns:
        The federation.

    Raises:
        ConfigError: The file is missing, or is no federation.
    """
    return _valid(str(file), _content(file, yaml.safe_load), Federation)


AnySection = TypeVar("AnySection", bound=Section)


def load_section(file: Path, schema: type[AnySection]) -> AnySection:
    """Read a YAML file that a person wrote.

    Args:
        file: Its path.
        schema: What stands in it.

    Returns:
        What it says.

    Raises:
        ConfigError: The file is missing, is not YAML, or says something else.
    """
    return _valid(str(file), _content(file, read_yaml), schema)


def _load(
    file: Path, schema: type[AnySection], overrides: Sequence[str], notes: list[str]
) -> AnySection:
    """Read a file that a person wrote, for this package or for APPFL."""
    content = _content(file, read_yaml)
    _override(content, overrides)
    where = _where(file, overrides)
    try:
        notes += [f"{file}: {note}" for note in translate(content)]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return _valid(where, content, schema)


def _content(file: Path, read: Callable[[str], Any]) -> Any:
    try:
        return read(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not YAML ({' '.join(str(error).split())})") from error


def _valid(where: str, content: Any, schema: type[AnySection]) -> AnySection:
    try:
        # Through JSON, since only there does pydantic's strict mode take a string for a UUID.
        return schema.model_validate_json(_as_json(where, content))
    except ValidationError as error:
        raise ConfigError(explain(where, schema, error)) from error


def _where(file: Path, overrides: Sequence[str]) -> str:
    """A file and what was laid over it, as a person typed them."""
    return " --set ".join([str(file), *overrides])


def _override(content: Any, overrides: Sequence[str]) -> None:
    for text in overrides:
        try:
            override(content, text)
        except ValueError as error:
            raise ConfigError(f"--set {text}: {error}") from error


def _as_json(where: str, content: Any) -> str:
    """What a YAML file says, its aliases followed: a few lines of them can stand for gigabytes."""
    parts: list[str] = []
    size = 0
    try:
        for part in json.JSONEncoder().iterencode(content):
            size += len(part)
            if size > LARGEST_FILE:
                raise ConfigError(
                    f"{where}: is over {LARGEST_FILE} characters long with its aliases"
                )
            parts.append(part)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}; quote dates and times") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: {error}; an alias must not stand inside what it names"
        ) from error
    return "".join(parts)


def explain(
    file: Path | str,
    schema: type[Section],
    error: ValidationError,
    prefix: tuple[str | int, ...] = (),
) -> str:
    """Tell the first fault of a file in one line: file, key, what was expected, the nearest key.

    Args:
        file: Where it is, and what was laid over it.
        schema: What was validated.
        error: What pydantic said of it.
        prefix: The keys that lead to what was validated.

    Returns:
        The line.
    """
    # A misspelt key is both unknown and missing: the first says more.
    faults = sorted(
        error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden"
    )
    fault, place = faults[0], _place(faults[0]["loc"])
    key = ".".join(str(part) for part in prefix + place)
    key = key if key.isprintable() else repr(key)
    where = f"{file}: {key}" if key else f"{file}"
    if fault["type"] == "extra_forbidden":
        known = _fields(schema, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] == "value_error":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    # A key that takes one of several types has a fault for each.
    expected = [_expected(other) for other in faults if _place(other["loc"]) == place]
    wanted = " or ".join(expected)
    return f"{where}: should be {wanted}, not {json.dumps(fault['input'], default=str)[:80]}"


def _expected(fault: Any) -> str:
    """What should have stood there; a choice of values in full, else without pydantic's details."""
    if fault["type"] == "literal_error":
        return str(fault["ctx"]["expected"])
    return str(fault["msg"].split(",")[0].removeprefix("Input should be "))


def _place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Where a fault is, without the names that pydantic gives to a key's alternative types."""
    return tuple(part for part in location if part not in ("uuid", "literal['local']"))


def _fields(schema: type[Section], place: tuple[str | int, ...]) -> list[str]:
    """The keys that the schema knows at a place."""
    for part in place:
        if isinstance(part, str):
            schema = next(_sections(schema.model_fields[part].annotation))
    return list(schema.model_fields)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections inside a field's type, such as the one in `list[Client]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
