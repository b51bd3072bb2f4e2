"""Every script finds its modules in a plain shell, where Python looks in the script's own folder alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from places import ROOT

SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
MODULES = {path.stem for path in (ROOT / "scripts").rglob("*.py")} | {
    path.name for path in (ROOT / "scripts").iterdir() if path.is_dir()
}
APPENDED = re.compile(
    r'^sys\.path\.append\(str\(Path\(__file__\)\.resolve\(\)\.parent\.parent(?: / "(\w+)")?\)\)', re.M
)


def imported(source: str) -> set[str]:
    """The first names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "scripts")))
def test_a_scripts_modules_lie_where_the_script_looks(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    places = [script.parent, *(script.parent.parent / folder for folder in APPENDED.findall(source))]
    for name in imported(source) & MODULES:
        assert any((place / f"{name}.py").exists() or (place / name).is_dir() for place in places), name
