"""Fields and values of a YAML file that a user writes, as plain values: texts, numbers, truth values, lists, mappings.

A file is refused if it has something with which YAML could surprise: a key twice, a tag such as `!!python/object`,
aliases that expand to very many values, many levels. The message names the line if there is one. Dates stay texts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from lora_retriever.data.objects import read_text
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.settings import plain_text

MAX_LENGTH = 1 << 18
"""Maximum length of a YAML file, in characters."""
MAX_NODES = 20_000
"""Maximum number of keys and values in a file, where an alias counts as often as all its content."""
MAX_LEVELS = 20
"""Maximum number of levels of lists and mappings in one another."""
MAX_DIGITS = 300
"""Maximum length of a number, in characters."""

_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")
)
_TOO_MANY_LEVELS = f"more than {MAX_LEVELS} levels of lists and mappings in one another"
_INFINITE = (math.inf, -math.inf)


class _Loader(yaml.SafeLoader):
    """YAML's own loader, which takes dates and the sign `=` as texts, and stops at too many levels."""

    level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.level == MAX_LEVELS:
            line = self.peek_event().start_mark.line + 1
            raise ValueError(f"line {line}: {_TOO_MANY_LEVELS}")
        self.level += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.level -= 1


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields and values of a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, holds no fields, or has something this module refuses. The
            message names the line or the field.
    """
    text = read_text(path)
    if len(text) > MAX_LENGTH:
        raise UserError(f"{path}: longer than {MAX_LENGTH:,} characters, the maximum; is this the right file?")
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected fields and values, found {_kind(content)}")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The value that a text has as YAML. `where` says where the text is, for messages.

    Raises:
        UserError: the text is not YAML, or has something this module refuses.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _check(node)
        content = None if node is None else loader.construct_document(node)
        _check_values(content, "")
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not readable as YAML: {_one_line(error)}") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()
    return content


def _check(root: yaml.Node) -> None:
    """Check a file's nodes before values are made of the nodes.

    Raises:
        ValueError: there are too many nodes or levels, a key is there twice, or a tag is not a tag of plain values.
    """
    open_nodes = [(root, 1)]
    count = 0
    while open_nodes:
        node, level = open_nodes.pop()
        count += 1
        where = f"line {node.start_mark.line + 1}"
        if count > MAX_NODES:
            raise ValueError(
                f"more than {MAX_NODES:,} keys and values, with each alias (*name) counted as what it stands for; "
                "write less"
            )
        if level > MAX_LEVELS:
            raise ValueError(f"{where}: {_TOO_MANY_LEVELS}")
        if node.tag not in _TAGS:
            raise ValueError(
                f"{where}: tag {quoted(node.tag)}: only texts, numbers, truth values, lists and mappings are read"
            )
        if isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"line {key.start_mark.line + 1}: a field's name must be a text")
                if (key.tag, key.value) in seen:
                    name = key.value if len(key.value) <= 60 else f"{key.value[:60]}…"
                    raise ValueError(
                        f"line {key.start_mark.line + 1}: field {quoted(name)} is there more than once; keep one"
                    )
                seen.add((key.tag, key.value))
                open_nodes += [(key, level + 1), (value, level + 1)]
        elif isinstance(node, yaml.SequenceNode):
            open_nodes += [(value, level + 1) for value in node.value]
        elif node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
            raise ValueError(f"{where}: a number of {len(node.value):,} characters, more than {MAX_DIGITS}")


def _check_values(value: Any, field: str) -> None:
    """Check the values that were made of a file's nodes.

    Raises:
        ValueError: a field's name is no text, a number is NaN or infinite, or a text has a NUL or half of a surrogate
            pair.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(
                    f"{field or 'the file'}: a field's name must be a text, found {quoted(name)}; "
                    f"write {quoted(str(name))}"
                )
            _check_values(name, field or "a field's name")
            _check_values(inner, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, field)
    elif isinstance(value, float) and (math.isnan(value) or value in _INFINITE):
        raise ValueError(f"{field}: is {value}; write a finite number")
    elif isinstance(value, str):
        try:
            plain_text(value)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error


def _one_line(error: yaml.YAMLError) -> str:
    """The problem and the line, without the excerpt of the file."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        return f"{line}{error.problem or error.context}"
    return str(error).splitlines()[0]


def _kind(content: Any) -> str:
    return "nothing" if content is None else type(content).__name__
