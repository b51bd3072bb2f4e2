"""The fields of a profile in words: their possible values, and the source of each value of one profile.

Everything comes from the classes of the profile: names, types, limits and defaults from the fields, meanings from the
docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lora_retriever.escaping import for_markdown
from lora_retriever.experiment.overrides import Keys, section_of
from lora_retriever.experiment.profile import PoolSection, Profile, read_profile
from lora_retriever.settings import Section

NO_FIELDS = ("folder",)
"""Attributes of `Profile` that a file cannot set."""
WIDTH = 60
"""Maximum column at which the sources begin. In a longer line, the source comes after the value."""
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_KINDS = {"boolean": "true or false", "string": "text", "array": "list", "object": "mapping", "null": "null"}


@dataclass(frozen=True)
class Field:
    """One field of a profile.

    Attributes:
        name: the name, with its section: `retrieval.k`.
        kind: what the value may be, in words.
        default: the default as YAML. None: the field is required.
        meaning: what the field says.
    """

    name: str
    kind: str
    default: str | None
    meaning: str


def profile_fields(section: type[Section] = Profile, prefix: str = "") -> Iterator[Field]:
    """Every field of a profile, or of a section under the `prefix` of its name, in the order of the classes."""
    properties = section.model_json_schema()["properties"]
    for name, info in section.model_fields.items():
        if name in NO_FIELDS:
            continue
        inner = section_of(info.annotation)
        if inner is not None:
            yield from profile_fields(inner, f"{prefix}{name}.")
            continue
        default = None if info.is_required() else _yaml(info.get_default(call_default_factory=True))
        if section is Profile and name == "name":
            default = "the file's name"
        shown = info.alias or name
        yield Field(f"{prefix}{shown}", _kind(properties[shown]), default, _meaning(section, name))


def reference() -> str:
    """The page of all fields, in Markdown."""
    lines = [
        "# Fields of a profile",
        "",
        "`lora-retriever profile --fields` prints this page; a test compares the page with the code.",
        "[Profiles](profiles.md) explains locations and shows where to read more.",
        "",
        "| field | value | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for field in _with_fields_of_pool():
        default = "required" if field.default is None else f"`{field.default}`"
        cells = [f"`{field.name}`", for_markdown(field.kind), default, _prose(field.meaning)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_fields_of_pool() -> Iterator[Field]:
    """All fields; the fields of `data.pool` as a mapping follow `data.pool`."""
    for field in profile_fields():
        yield field
        if field.name == "data.pool":
            yield from profile_fields(PoolSection, "data.pool.")


def with_sources(name_or_file: str, values: Sequence[str] = ()) -> str:
    """A profile with all its fields as YAML, where each line ends in the source of the value.

    The sources are `profile` (the file), `--set` and `default`.

    Raises:
        UserError: as for `load_profile`.
    """
    read = read_profile(name_or_file, values)
    profile = read.profile
    lines = [*_lines(profile, read.content, set(read.values), ())]
    width = max(len(line) for line, source in lines if source and len(line) <= WIDTH)
    head = [f"# {read.path}", f"# rows: {profile.rows_path}", f"# pool: {profile.pool_path}"]
    body = [f"{line:<{width}}  # {source}" if source else line for line, source in lines]
    return "\n".join([*head, *body]) + "\n"


def _lines(section: Section, content: Mapping[str, Any], given: set[Keys], keys: Keys) -> Iterator[tuple[str, str]]:
    """Lines of YAML with the sources of their values; the line of a section has no source."""
    indent = "  " * len(keys)
    for name in type(section).model_fields:
        if name in NO_FIELDS:
            continue
        value, place = getattr(section, name), (*keys, name)
        if isinstance(value, Section) and section_of(type(section).model_fields[name].annotation) is not None:
            inner = content.get(name)
            yield f"{indent}{name}:", ""
            yield from _lines(value, inner if isinstance(inner, dict) else {}, given, place)
            continue
        if any(one[: len(place)] == place for one in given):
            source = "--set"
        else:
            source = "profile" if name in content else "default"
        yield f"{indent}{name}: {_yaml(value)}", source


def _yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Section):
        value = value.model_dump(by_alias=True, exclude_unset=True)
    plain = list(value) if isinstance(value, tuple) else value
    plain = int(plain) if isinstance(plain, int) and not isinstance(plain, bool) else plain  # ByteSize is an int
    text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _kind(schema: Mapping[str, Any]) -> str:
    """The allowed values of a field in words, from the field's JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(schema["enum"])
    kind = "object" if "$ref" in schema else schema.get("type", "")
    if kind not in ("integer", "number"):
        if kind == "array":
            return f"list of {_kind(schema['items'])}s"
        return _KINDS[kind]
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is None and (below := schema.get("exclusiveMaximum")) is not None:
        high = below - 1
    name = "whole number" if kind == "integer" else "number"
    if (above := schema.get("exclusiveMinimum")) is not None:
        return f"{name} above {above}"
    if low is not None and high is not None:
        return f"{name} from {low} to {high:,}"
    return name if low is None else f"{name} from {low}"


def _meaning(section: type[Section], name: str) -> str:
    """The meaning of a field, from the docstring of a section or of the class that the section extends."""
    for kind in section.__mro__:
        attributes = dict(_ATTRIBUTE.findall(inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]))
        if name in attributes:
            return " ".join(attributes[name].split())
    return ""


def _prose(text: str) -> str:
    """A meaning as a cell of a Markdown table. Python's None is YAML's null."""
    return re.sub(r"\bNone\b", "`null`", text[:1].upper() + text[1:]).replace("|", "\\|")
