"""A method is one file: the file has the whole method, and the file alone can be deleted."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import lora_retriever.methods

FOLDER = Path(lora_retriever.methods.__file__).parent
SHARED = {"base", "code", "context", "options", "parts"}
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in {"__init__", *SHARED})


def imports_of(source: str, module: str) -> set[str]:
    """The modules and objects that a module's source imports, by their full names: also within functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def test_imports_are_found_however_they_are_written() -> None:
    source = "import a.moe\nfrom a import logo\nfrom . import smear\ndef f():\n    from .paper import Own\n"
    assert imports_of(source, "a.arrow") == {"a.moe", "a.logo", "a.smear", "a.paper.Own"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_methods_file_imports_no_other_methods_file(file: Path) -> None:
    package = "lora_retriever.methods"
    imported = imports_of(file.read_text(encoding="utf-8"), f"{package}.{file.stem}")
    within = {name.removeprefix(f"{package}.").split(".")[0] for name in imported if name.startswith(f"{package}.")}
    assert within <= SHARED
    assert within, "every method needs the base"
