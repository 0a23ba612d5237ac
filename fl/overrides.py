"""`--set KEY=VALUE`: what one run changes in its files, laid over them before validation."""

from __future__ import annotations

import re
from copy import copy
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

SWITCHES = ("dp_sgd", "local_dp", "norm_bound")
"""Keys that protect: null switches them off, and has to be written."""
BLANK = "is empty; write null to switch it off"
TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


if yaml.__with_libyaml__:

    class _Fast(Composer, yaml.CSafeLoader):
        """libyaml's parser, and PyYAML's own composer above it: libyaml's dies of deep nesting."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)
else:
    _Fast = yaml.SafeLoader  # type: ignore[assignment, misc]


class _AsMeant(Composer, Resolver):
    """YAML as people mean it.

    Its numbers are those that people write: 1e-3, which YAML 1.1 takes for a text. A key that
    stands twice is refused; PyYAML takes the last one and says nothing. So is one that is no text:
    sites get JSON, which would make the number 1 a "1". Nor does a blank switch off what protects:
    what stood below the key may be commented out.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, before merge keys bring others' keys into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, value in node.value:
            if problem := _problem(key, value, seen):
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node


def _problem(key: yaml.Node, value: yaml.Node, seen: set[Any]) -> str | None:
    """What is wrong with a key of a mapping, if anything is."""
    if not isinstance(key, yaml.ScalarNode):
        return None
    if key.value in seen:
        return f"{key.value} stands twice"
    if key.tag not in TEXT_TAGS:
        return f"the key {key.value} is no text; quote it"
    if key.value in SWITCHES and isinstance(value, yaml.ScalarNode) and not value.value:
        return f"{key.value} {BLANK}"
    return None


_AsMeant.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class _Loader(_AsMeant, _Fast):
    """What a person wrote, read fast."""


class _Explaining(_AsMeant, yaml.SafeLoader):
    """The same in Python alone: a tenth as fast, but it knows better what is wrong."""


def read_yaml(text: str) -> Any:
    """Read YAML as people write it.

    Args:
        text: The YAML.

    Returns:
        What it says.

    Raises:
        yaml.YAMLError: It is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe one)  # nosec B506
    except yaml.YAMLError:
        return yaml.load(text, Loader=_Explaining)  # noqa: S506  (likewise)  # nosec B506


def read_dumped(text: str) -> Any:
    """Read YAML as `yaml.safe_dump` writes it.

    Args:
        text: The YAML.

    Returns:
        What it says.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=_Fast)  # noqa: S506  (a safe one)  # nosec B506


def fault(error: Exception) -> str:
    r"""Why a text is not YAML, in one line with the place.

    Args:
        error: What reading it raised.

    Returns:
        Such as `line 3, column 1: found character '\t' that cannot start any token`.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        tab = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{tab}"
    return " ".join(str(error).split())


def override(content: Any, text: str) -> None:
    """Lay one KEY=VALUE over a file's content, in place.

    Args:
        content: What the file's YAML says; what is no mapping is left for validation to refuse.
        text: Keys joined by dots, `=`, and a value in YAML. A place in a list is given by its
            number from 0, or by a client's `client_id`, which may have dots. Mappings that are not
            there are made.

    Raises:
        ValueError: It is no KEY=VALUE, the value is no YAML, or the key leads through something
            that holds no keys; the message says which.
    """
    key, separator, value = text.partition("=")
    *path, last = _path(content, key)
    if not separator or not all([*path, last]):
        raise ValueError("should be KEY=VALUE, such as server_configs.num_global_epochs=20")
    if last in SWITCHES and not value.strip():
        raise ValueError(f"{last} {BLANK}")
    try:
        new = read_yaml(value)
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not YAML ({fault(error)})") from error
    if not isinstance(content, dict):
        return
    place: Any = content
    for part in path:
        place = _step(place, part)
    match place:
        case dict():
            place[last] = new
        case list():
            place[_index(place, last)] = new


def _path(content: Any, key: str) -> list[str]:
    """A key's parts; behind `clients.` the first may be a site's name, with dots in it."""
    first, _, rest = key.partition(".")
    listed = content.get("clients") if isinstance(content, dict) else None
    names = _names(listed) if first == "clients" and isinstance(listed, list) else []
    fitting = [name for name in names if name is not None and f"{rest}.".startswith(f"{name}.")]
    if not fitting:
        return key.split(".")
    name = max(fitting, key=len)
    below = rest.removeprefix(name)
    return [first, name, *below.split(".")[1:]]


def _names(items: list[Any]) -> list[str | None]:
    """The clients' ids in a list, None where there is none, or one that validation refuses."""
    ids = [item.get("client_id") if isinstance(item, dict) else None for item in items]
    return [name if isinstance(name, str) else None for name in ids]


def _step(place: Any, part: str) -> Any:
    """What a key leads to; a copy of it, since aliases may lead to it from elsewhere, too."""
    key = _index(place, part) if isinstance(place, list) else part
    if isinstance(place, dict) and place.get(part) is None:
        place[part] = {}
    if not isinstance(place[key], dict | list):
        raise ValueError(f"{part} holds {place[key]!r}, which has no keys")
    place[key] = copy(place[key])
    return place[key]


def _index(items: list[Any], part: str) -> int:
    """A place in a list, by its number or by its client's id."""
    names = _names(items)
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    known = ", ".join(name for name in names if name is not None)
    raise ValueError(f"{part} is none of the {len(items)} that are listed ({known})")
