"""YAML files give plain values.

Surprising or very large values are refused, and the message names the line or field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_retriever.data.yaml_files import MAX_NODES, read_yaml
from lora_retriever.errors import UserError


def read(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


def test_values_are_plain_and_dates_are_texts(tmp_path: Path) -> None:
    text = "\ufeffname: 2024-01-31\nwrong: 2024-13-45\nsign: =\nlist: [1, 2.5, yes, null, 'x']\n"
    assert read(tmp_path, text) == {
        "name": "2024-01-31",
        "wrong": "2024-13-45",
        "sign": "=",
        "list": [1, 2.5, True, None, "x"],
    }


def test_an_alias_is_what_it_stands_for(tmp_path: Path) -> None:
    text = "a: &a {samples: 5}\nb: *a\nc: {<<: *a, epochs: 2}\n"
    assert read(tmp_path, text) == {"a": {"samples": 5}, "b": {"samples": 5}, "c": {"samples": 5, "epochs": 2}}


EXPLOSION = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
REFUSED = {
    "no fields": ("- 1", "expected fields and values, found list"),
    "nothing": ("# a comment", "expected fields and values, found nothing"),
    "a list without an end": ("a: 1\nb: [", "not readable as YAML: line 2: "),
    "a tab": ("a:\n\tb: 1", "not readable as YAML: line 2: found character '\\t'"),
    "two documents": ("a: 1\n---\nb: 1", "not readable as YAML: line 2: but found another document"),
    "an unknown alias": ("a: *b", "not readable as YAML: line 1: found undefined alias 'b'"),
    "a key twice": ("a: 1\nb: {c: 1,\n c: 2}", "line 3: field 'c' is there more than once; keep one"),
    "a key twice in other quotes": ("a: 1\n'a': 2", "line 2: field 'a' is there more than once"),
    "an object of Python": (
        "a: !!python/object/apply:os.system [echo]",
        "line 1: tag 'tag:yaml.org,2002:python/object",
    ),
    "a tag of one's own": ("a: !mine 1", "line 1: tag '!mine': only texts, numbers"),
    "a set": ("a: !!set {b}", "line 1: tag 'tag:yaml.org,2002:set'"),
    "bytes": ("a: !!binary aGVsbG8=", "line 1: tag 'tag:yaml.org,2002:binary'"),
    "a list as a key": ("? [a]\n: 1", "line 1: a field's name must be a text"),
    "a number as a key": ("a: {1: 2}", "a: a field's name must be a text, found 1; write '1'"),
    "a truth value as a key": ("on: 1", "the file: a field's name must be a text, found True"),
    "aliases that explode": (EXPLOSION, f"more than {MAX_NODES:,} keys and values, with each alias"),
    "an alias of itself": ("a: &a [*a]", "line 1: more than 20 levels of lists and mappings"),
    "thirty levels": ("a: " + "[" * 30 + "]" * 30, "line 1: more than 20 levels"),
    "many levels": ("a: " + "[" * 250_000, "line 1: more than 20 levels"),
    "many levels of mappings": ("{a: " * 60_000, "line 1: more than 20 levels"),
    "many levels of lines": ("- " * 120_000, "line 1: more than 20 levels"),
    "many levels of keys": ("? " * 120_000, "line 1: more than 20 levels"),
    "many digits": (f"a: 1\nb: {'1' * 5000}", "line 2: a number of 5,000 characters, more than 300"),
    "NaN": ("a: {b: [.nan]}", "a.b: is nan; write a finite number"),
    "infinity": ("a: 1.0e+999", "a: is inf; write a finite number"),
    "a NUL": ('a: "x\\0"', "a: has a NUL character, at character 2"),
    "half of a surrogate pair": ('a: ["\\ud83d"]', "a: has half of a surrogate pair, \\ud83d, at character 1"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "this is UTF-16, not UTF-8"),
    "a control character": (b"a: \x01", "not readable as YAML: "),
    "a long file": ("# " + "x" * 300_000, "longer than 262,144 characters"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_what_surprises_or_explodes_is_one_short_message(tmp_path: Path, kind: str) -> None:
    text, message = REFUSED[kind]
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    found = str(error.value).removeprefix(f"{tmp_path / 'file.yaml'}: ")
    assert found.startswith(message)
    assert len(found) < 300
    assert len(found.splitlines()) == 1
