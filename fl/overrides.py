"""`--set KEY=VALUE`: what one run changes in its files, laid over them before validation."""

from __future__ import annotations

import re
from copy import copy
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

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
    sites get JSON, which would make the number 1 a "1".
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, before merge keys bring others' keys into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands twice", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode) and key.tag not in TEXT_TAGS:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is no text; quote it",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node


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
            number from 0, or by a client's `client_id`. Mappings that are not there are made.

    Raises:
        ValueError: It is no KEY=VALUE, the value is no YAML, or the key leads through something
            that holds no keys; the message says which.
    """
    key, separator, value = text.partition("=")
    *path, last = key.split(".")
    if not separator or not all([*path, last]):
        raise ValueError("should be KEY=VALUE, such as server_configs.num_global_epochs=20")
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
    names = [item.get("client_id") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    known = ", ".join(str(name) for name in names if name is not None)
    raise ValueError(f"{part} is none of the {len(items)} that are listed ({known})")
