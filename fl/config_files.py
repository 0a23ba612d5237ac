"""Reading server.yaml and clients.yaml, and saying in one line what is wrong with them.

The line names the file, the key, what was expected and the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from fl.appfl import translate
from fl.config import (
    NAME_PATTERN,
    Client,
    ClientsFile,
    ConfigError,
    ExperimentFile,
    Federation,
    Section,
    ServerConfigs,
    ServerFile,
    TrainConfigs,
)
from fl.overrides import fault, override, read_dumped, read_yaml

SMALL, GROWTH = 1_000_000, 10
"""Characters that any file may come to by its aliases, and times its own that a larger one may."""
HALF_A_CHARACTER = r"has half a character (\ud800 to \udfff), which no text can hold"


@dataclass(frozen=True)
class Files:
    """Where a federation is described.

    Attributes:
        server: Path of server.yaml; or of an experiment.yml, for sites in processes here.
        clients: Path of clients.yaml; None with an experiment.yml.
        overrides: KEY=VALUE texts that go over them.
    """

    server: Path
    clients: Path | None
    overrides: tuple[str, ...] = ()

    @classmethod
    def of_folder(cls, folder: Path, overrides: tuple[str, ...] = ()) -> Files:
        """The two files of a folder, or the experiment.yml of one that has no server.yaml."""
        server, experiment = folder / "server.yaml", folder / "experiment.yml"
        if _is_there(experiment) and not _is_there(server):
            return cls(experiment, None, overrides)
        return cls(server, folder / "clients.yaml", overrides)

    @property
    def site_code(self) -> Path:
        """The folder that paths of models and loaders begin in, unless a deployment has another.

        An experiment's paths begin with its folder's name, as they do at sites.
        """
        folder = self.server.resolve().parent
        return folder.parent if self.clients is None else folder

    def load(self) -> Federation:
        """The federation; see `load_federation`."""
        if self.clients is not None and not (_is_there(self.server) or _is_there(self.clients)):
            raise ConfigError(
                f"{self.server.parent}: has neither {self.server.name} and {self.clients.name}, "
                "which deploy.yml writes, nor an experiment.yml, which fl init writes"
            )
        return load_federation(self.server, self.clients, self.overrides)


def _is_there(file: Path) -> bool:
    """Whether a file is there; one that may not be looked at is, and reading it says why not."""
    try:
        return file.exists()
    except OSError:
        return True


def load_federation(
    server: Path, clients: Path | None, overrides: Sequence[str] = ()
) -> Federation:
    """Read server.yaml and clients.yaml, or an experiment.yml.

    Args:
        server: Path of server.yaml, or of experiment.yml.
        clients: Path of clients.yaml; None with an experiment.yml, whose sites are processes here.
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
    content, most = _overridden(server, of_server)
    if clients is None:
        _count_local_sites(content)
        experiment = _read(server, of_server, content, most, ExperimentFile, notes)
        server_file: ServerFile = experiment
        clients, listed = server, _local_sites(experiment)
        _override(listed, of_clients)
    else:
        server_file = _read(server, of_server, content, most, ServerFile, notes)
        listed, most = _overridden(clients, of_clients)
    clients_file = _read(clients, of_clients, listed, most, ClientsFile, notes)
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
    return _valid(str(file), *_content(file, read_dumped), Federation)


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
    return _valid(str(file), *_content(file, read_yaml), schema)


def _count_local_sites(content: Any) -> None:
    """Two sites, where an experiment.yml does not say how many are here."""
    configs = content.get("server_configs") if isinstance(content, dict) else None
    if isinstance(configs, dict):
        configs.setdefault("num_clients", 2)


def _local_sites(experiment: ExperimentFile) -> dict[str, Any]:
    """What clients.yaml would say: each site with its part of the data, as by playbooks."""
    configs, data = experiment.server_configs, experiment.data_configs.model_dump(mode="json")
    part = {"num_clients": configs.num_clients}
    ways = configs.comm_configs.proxystore_configs.model_dump(mode="json")
    return {
        "clients": [
            {
                "endpoint_id": "local",
                "client_id": f"site-{ascii_lowercase[index] if index < 26 else index}",
                "data_configs": data
                | {"dataset_kwargs": data["dataset_kwargs"] | part | {"client_id": index}},
                "comm_configs": {"proxystore_configs": ways},
            }
            for index in range(configs.num_clients)
        ]
    }


def _overridden(file: Path, overrides: Sequence[str]) -> tuple[Any, int]:
    """What a file that a person wrote says, with what goes over it; see `_content`."""
    content, most = _content(file, read_yaml)
    _override(content, overrides)
    return content, most


def _read(
    file: Path,
    overrides: Sequence[str],
    content: Any,
    most: int,
    schema: type[AnySection],
    notes: list[str],
) -> AnySection:
    """Read what a person wrote, for this package or for APPFL."""
    where = _where(file, overrides)
    theirs = "clients" if issubclass(schema, ServerFile) else "server_configs"
    if isinstance(content, dict) and theirs in content:
        other = "clients.yaml" if theirs == "clients" else "server.yaml"
        raise ConfigError(f"{where}: {theirs} belongs into {other}; are the two files exchanged?")
    try:
        notes += [f"{file}: {note}" for note in translate(content)]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return _valid(where, content, most, schema)


def _content(file: Path, read: Callable[[str], Any]) -> tuple[Any, int]:
    """What a file says, and how many characters that may come to with its aliases."""
    try:
        text = file.read_text(encoding="utf-8")
        content = read(text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not YAML ({fault(error)})") from error
    if content is None:
        raise ConfigError(f"{file}: is empty")
    return content, max(SMALL, GROWTH * len(text))


def _valid(where: str, content: Any, most: int, schema: type[AnySection]) -> AnySection:
    try:
        # Through JSON, since only there does pydantic's strict mode take a string for a UUID.
        return schema.model_validate_json(_as_json(where, content, most))
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


def _as_json(where: str, content: Any, most: int) -> str:
    """What a YAML file says, its aliases followed: a few lines of them can stand for gigabytes."""
    parts: list[str] = []
    size = 0
    try:
        for part in json.JSONEncoder().iterencode(content):
            size += len(part)
            if size > most:
                raise ConfigError(f"{where}: is over {most} characters long with its aliases")
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
        elsewhere = [".".join(map(str, (*prefix, *path))) for path in _named(schema, place)]
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        if elsewhere or near:
            return f"{where}: unknown key; did you mean {' or '.join(elsewhere or near)}?"
        return f"{where}: unknown key; known here: {', '.join(known)}"
    if fault["type"] == "json_invalid":  # YAML can say more than pydantic's reader of JSON takes
        deep = "recursion limit" in fault["msg"]
        return f"{where}: {'is nested too deep' if deep else HALF_A_CHARACTER}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] == "value_error":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    # A key that takes one of several types has a fault for each.
    expected = [_expected(other) for other in faults if _place(other["loc"]) == place]
    wanted = " or ".join(expected).replace(" or be ", " or ")
    given = json.dumps(fault["input"], default=str, ensure_ascii=False)
    if not given.isprintable():  # U+2028, for one, would begin a line
        given = json.dumps(fault["input"], default=str)
    return f"{where}: should {wanted}, not {given[:80]}"


def _expected(fault: Any) -> str:
    """What should be so; a choice of values in full, else without pydantic's details."""
    match fault["type"]:
        case "literal_error":
            return f"be {fault['ctx']['expected']}"
        case "string_pattern_mismatch" if fault["ctx"]["pattern"] == NAME_PATTERN:
            return "have letters, digits, _, . and - alone, and begin with a letter or a digit"
        case "model_type" | "dict_type":
            return "be a mapping, KEY: VALUE"
        case "list_type":
            return "be a list"
    told = str(fault["msg"].split(",")[0].partition(" should ")[2])
    return told.removesuffix(" after validation")


def _place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Where a fault is, without the names that pydantic gives to a key's alternative types."""
    return tuple(
        part
        for before, part in zip((None, *location), location, strict=False)
        if before != "endpoint_id" or part not in ("uuid", "literal['local']")
    )


def _fields(schema: type[Section], place: tuple[str | int, ...]) -> list[str]:
    """The keys that the schema knows at a place."""
    for part in place:
        if isinstance(part, str):
            schema = next(_sections(schema.model_fields[part].annotation))
    return list(schema.model_fields)


def _named(
    schema: type[Section], place: tuple[str | int, ...], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[str | int, ...]]:
    """Where in a schema the last key of a place would be known; in a list, for the same one."""
    for key, field in schema.model_fields.items():
        if key == place[-1]:
            yield (*path, key)
        number = [part for part in place if isinstance(part, int)][:1]
        inside = number if get_origin(field.annotation) is list else []
        for section in _sections(field.annotation):
            yield from _named(section, place, (*path, key, *inside))


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections inside a field's type, such as the one in `list[Client]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
