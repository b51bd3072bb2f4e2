"""Mutation testing of the formulas: does a test fail when a formula is changed?

    python scripts/mutants.py                  all groups of formulas; a stopped run goes on where it was stopped
    python scripts/mutants.py metrics          the formulas of one group
    python scripts/mutants.py --report         the scores of what was run so far

mutmut changes one operator, number, argument or text of a function at a time, and runs the tests that reach the
function in a forked process. The work is done in the folder .mutants, on a copy of the project in which
`peft_composition` lies beside `lora_retriever`: mutmut finds modules by their paths. docs/mutants.md says how to read
the results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutants"
COPIED = {
    "lora_retriever": "lora_retriever",
    "peft/peft_composition": "peft_composition",
    "tests": "tests",
    "scripts": "scripts",
    "data/tiny": "data/tiny",
    "pyproject.toml": "pyproject.toml",
}
"""Files and folders of the project, and their places in the copy."""


@dataclass(frozen=True)
class Group:
    """A group of formulas with the same tests: the `files` that are mutated, and the `tests` that are run."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "retrieval": Group(
        ("lora_retriever/retrieval/scorers/*.py", "lora_retriever/retrieval/calibration.py"),
        tuple(
            f"tests/retrieval/test_{name}.py"
            for name in ("scorers", "calibration", "index", "index_changes", "texts_alone")
        ),
    ),
    "statistics": Group(
        ("lora_retriever/resampling.py", "lora_retriever/analysis/comparison.py"),
        ("tests/test_resampling.py", "tests/analysis/test_comparison.py"),
    ),
    "metrics": Group(
        tuple(
            f"lora_retriever/metrics/{name}.py"
            for name in ("base", "paper", "plans", "standard", "subsequence", "texts", "triples")
        ),
        ("tests/metrics",),
    ),
    "composition": Group(
        tuple(f"peft_composition/{name}.py" for name in ("gates", "joining", "merges", "merging", "pairs", "updates")),
        tuple(
            f"tests/composition/test_composition_{name}.py"
            for name in ("formulas", "gates", "golden", "joining", "merges", "passes", "stacks", "updates")
        ),
    ),
}
SETTINGS = """[mutmut]
source_paths=
    lora_retriever
    peft_composition
only_mutate=
    {files}
do_not_mutate_patterns=
    raise \\w+
    ^\\s+f?"
    SCORERS\\[name\\] = Scorer
    needs_samples: bool = False
also_copy=
    data
    scripts
pytest_add_cli_args=
    -p
    no:cacheprovider
    -p
    no:xdist
pytest_add_cli_args_test_selection=
    {tests}
"""
"""The settings of mutmut. Messages are not mutated: lines that raise an error, and lines that are a text. Nor is the
registration of scorers, which is done at import: before mutmut chooses a mutant."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"from {', '.join(GROUPS)}; default: all")
    parser.add_argument("--processes", type=int, default=2, help="number of mutants that are tested at once")
    parser.add_argument("--report", action="store_true", help="print the scores of what was run so far; run nothing")
    args = parser.parse_args(arguments)
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(sorted(unknown))} (known: {', '.join(GROUPS)})")
    status = 0
    for name in () if args.report else args.groups or GROUPS:
        status = max(status, run(name, args.processes))
    print(table(WORK))
    return status


def run(name: str, processes: int) -> int:
    """Run mutmut on one group of formulas. Returns the exit status of mutmut."""
    work = WORK / name
    for source, target in COPIED.items():
        copy(ROOT / source, work / target)
    settings = SETTINGS.format(files="\n    ".join(GROUPS[name].files), tests="\n    ".join(GROUPS[name].tests))
    (work / "setup.cfg").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)]
    return subprocess.run(command, cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder in place of its old copy.

    The files keep their times of change, because mutmut finds changes by these times.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        shutil.copy2(source, target)


def table(folder: Path) -> str:
    """The mutants and the killed mutants of every file that was run, as a table in Markdown."""
    lines = ["| file | mutants | killed | survived | score |", "| --- | ---: | ---: | ---: | ---: |"]
    total: Counter[str] = Counter()
    for meta in sorted(folder.rglob("*.py.meta")):
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].values()
        found = Counter(outcome(code) for code in codes if code is not None)
        if found:
            lines.append(line(str(meta).partition("/mutants/")[2].removesuffix(".meta"), found))
            total += found
    return "\n".join([*lines, line("all", total)])


def outcome(code: int) -> str:
    """`survived` where the tests pass or no test reaches the mutant; a timeout and a crash count as `killed`."""
    return "survived" if code in (0, 5, 33) else "killed"


def line(name: str, found: Counter[str]) -> str:
    """A line of the table."""
    mutants = found.total()
    score = f"{100 * found['killed'] / mutants:.1f} %" if mutants else "–"
    return f"| {name} | {mutants} | {found['killed']} | {found['survived']} | {score} |"


if __name__ == "__main__":
    sys.exit(main())
