"""A part of the campaign: kills, signals, pipes, failing disks and fuzzing; and tests of the campaign's own tools."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from campaign.figures import Log
from campaign.fuzzing import Target, fuzz_once, make_targets
from campaign.kills import differences
from places import ROOT
from run_campaign import PART, run_experiment

from lora_retriever.errors import UserError

FILES = 10
"""Number of mutated files of each reader."""


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a part of the campaign. The campaign starts its commands as forks of this process."""
    out = tmp_path_factory.mktemp("campaign")
    run_experiment("part", out, tmp_path_factory.mktemp("scratch"))
    found: dict[str, Any] = json.loads((out / "figures.json").read_text())
    return found


@pytest.mark.long
@pytest.mark.parametrize("experiment", PART)
def test_no_promise_is_broken(figures: dict[str, Any], experiment: str) -> None:
    assert figures[experiment]["problems"] == {}
    trials = sum(kind["trials"] for kind in figures[experiment]["kinds"].values())
    kills = sum(kind.get("kills", 0) for kind in figures[experiment]["kinds"].values())
    assert (kills if experiment in ("kills", "operations") else trials) >= PART[experiment]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Target]]:
    folder = tmp_path_factory.mktemp("fuzzed")
    return folder, make_targets(folder)


@pytest.mark.long
def test_readers_of_mutated_files_raise_no_error_but_the_projects(targets: tuple[Path, list[Target]]) -> None:
    folder, readers = targets
    all_refused = 0
    for target in readers:
        target.read(folder)  # the file without any change
        files, refused, problems = fuzz_once(target, folder, seed=0, examples=FILES)
        assert problems == []
        assert files == FILES
        all_refused += refused
    assert all_refused > FILES


@pytest.mark.slow
def test_fuzzing_finds_another_error(targets: tuple[Path, list[Target]]) -> None:
    def read(folder: Path) -> None:
        if len((folder / "rows.json").read_bytes()) % 2:
            raise KeyError("odd")
        raise UserError("even")

    _, refused, problems = fuzz_once(Target("odd", "rows.json", read, (UserError,)), targets[0], 0, FILES)
    assert 0 < refused < FILES
    assert len(problems) == 1
    assert "KeyError" in problems[0]


@pytest.mark.slow
def test_operations_are_counted_and_fail_where_they_shall(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from campaign.operations import Operations, failing\n"
        "folder, at = Path(sys.argv[1]), int(sys.argv[2])\n"
        f"operations = Operations([folder], None if at < 0 else at, failing({errno.EIO}))\n"
        "operations.install()\n"
        "try:\n"
        "    with (folder / 'a').open('wb') as file:\n"
        "        file.write(b'12345678')\n"
        "    (folder / 'a').rename(folder / 'b')\n"
        "    (folder / 'b').unlink()\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
        "print(*operations.seen, sep=', ')\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "peft"), str(ROOT / "scripts")])

    def run(at: int) -> list[str]:
        command = [sys.executable, "-c", code, str(tmp_path), str(at)]
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()

    assert run(-1) == ["open to write a, write a, rename a, unlink b"]
    assert run(1) == [str(errno.EIO), "open to write a, write a"]
    assert (tmp_path / "a").read_bytes() == b"1234"  # the write was torn
    assert run(3) == [str(errno.EIO), "open to write a, write a, rename a, unlink b"]
    assert (tmp_path / "b").read_bytes() == b"12345678"


def test_lost_left_over_and_changed_files_are_seen() -> None:
    expected = {"a": b"1", "b": {"x": 1, "y": 2}}
    assert differences(expected, expected) == []
    assert differences({"b": {"x": 1, "y": 3}, ".c": b""}, expected) == [
        "a is missing",
        ".c is left over",
        "b differs in ['y']",
    ]


@pytest.mark.slow
def test_a_campaign_goes_on_and_tries_again_what_broke_a_promise(tmp_path: Path) -> None:
    log = Log(tmp_path, "kills")
    log.add("first", "random", [], kills=3)
    log.add("second", "random", ["a row is lost"], kills=1)
    assert log.save()["problems"] == {"second": ["a row is lost"]}
    again = Log(tmp_path, "kills")
    assert list(again.trials) == ["first"]
    again.add("second", "random", [], kills=1)
    assert again.save() == {
        "kinds": {"random": {"trials": 2, "trials with problems": 0, "kills": 4}},
        "problems": {},
    }
