"""Sphinx directives that write the configuration reference from the pydantic models themselves.

`settings` takes a section by its dotted name and writes a table for it, and for each section
inside; `registry` does so for the `Settings` of every class that a registry names. Types and limits
come from the models' JSON schema, meanings from the docstrings that stand below the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

from docutils import nodes
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from fl.config import Section

ATOMS = {
    "boolean": "true or false",
    "integer": "integer",
    "null": "null",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
LIMITS = {
    "exclusiveMinimum": "over",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


class Settings(SphinxDirective):
    """A section of a file, with all sections in it: `{settings} fl.config.ServerFile`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The tables, each under its path of keys."""
        text = "\n\n".join(
            f"### {f'`{path}`' if path else 'At the top'}\n\n{table(section)}"
            for path, section in sections(imported(self.arguments[0]))
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Registry(SphinxDirective):
    """Every class of a registry: `{registry} fl.server.schedulers.registry.OURS`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """What each is, and its settings."""
        text = "\n\n".join(
            f"### `{name}`\n\n{first_line(kind)}\n\n{table(kind.Settings)}"
            for name, kind in imported(self.arguments[0]).items()
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def imported(name: str) -> Any:
    """What a dotted name means."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def sections(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A section and those inside it, each with the keys that lead there."""
    yield path, section
    for key, field in section.model_fields.items():
        for inner in inner_sections(field.annotation):
            items = "[]" if "list[" in str(field.annotation) else ""
            yield from sections(inner, f"{path}.{key}{items}".lstrip("."))


def inner_sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from inner_sections(argument)


def table(section: type[Section]) -> str:
    """What a section is, and a row for each of its keys."""
    rows = [row(section, key) for key in section.model_fields]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n\n".join([first_line(section), "\n".join(head + rows) if rows else "No settings."])


def row(section: type[Section], key: str) -> str:
    """One key."""
    field = section.model_fields[key]
    inside = any(inner_sections(field.annotation))
    known = section.model_json_schema()["properties"][key]
    kind = "section, below" if inside else type_name(known)
    cells = [f"`{key}`", kind, default(field, has_sections=inside), meaning(section, key)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default(field: Any, *, has_sections: bool) -> str:
    """What holds where the key is not written."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if has_sections:
        return "none" if value is None else "as below"
    if value is None or value is PydanticUndefined:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_name(schema: dict[str, Any]) -> str:
    """A JSON schema for people."""
    if "anyOf" in schema:
        return " or ".join(type_name(part) for part in schema["anyOf"])
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("format") == "uuid":
        return "UUID"
    if schema.get("type") == "array":
        return f"list of {type_name(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {type_name(schema['additionalProperties'])}"
    limits = [f"{word} {schema[limit]:g}" for limit, word in LIMITS.items() if limit in schema]
    pattern = [f"like `{schema['pattern']}`"] if "pattern" in schema else []
    return " ".join([ATOMS[schema["type"]], ", ".join(limits + pattern)]).strip()


def meaning(section: type[Section], key: str) -> str:
    """The docstring below a field, in the class that has it."""
    for kind in section.__mro__:
        documented = ModuleAnalyzer.for_module(kind.__module__).find_attr_docs()
        if lines := documented.get((kind.__qualname__, key)):
            return " ".join(line for line in lines if line)
    raise ValueError(f"{section.__qualname__}.{key} has no docstring below it")


def first_line(kind: type[Any]) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directives known."""
    app.add_directive("settings", Settings)
    app.add_directive("registry", Registry)
    return {"parallel_read_safe": True}
