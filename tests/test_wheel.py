"""The wheels hold all that an installation needs, and work without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from places import ROOT, TINY

from lora_retriever import __version__

PACKAGES = {"lora_retriever": ROOT / "lora_retriever", "peft_composition": ROOT / "peft" / "peft_composition"}
MINIATURE = "lora_retriever/profiles/tiny"
LINKED = {MINIATURE: TINY, f"{MINIATURE}-procedures": ROOT / "data" / "tiny-procedures"}
"""The folders that the wheel has in place of links, by the links' names."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two wheels by the names of their packages, built from a copy: a build leaves files in its folder."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools builds the wheels")
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in ("lora_retriever", "peft", "data/tiny", "data/tiny-procedures"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    made = subprocess.run(
        [*build, "--wheel-dir", str(folder), str(source), str(source / "peft")], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


@pytest.mark.long
def test_the_wheels_hold_every_file_of_the_packages(wheels: dict[str, Path]) -> None:
    """Each file of the folders of the packages, with the miniature in place of its link, and nothing else."""
    assert wheels.keys() == PACKAGES.keys()
    for package, folder in PACKAGES.items():
        files = {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        files |= {
            f"{link}/{path.relative_to(place).as_posix()}": path
            for link, place in LINKED.items()
            for path in place.rglob("*")
            if package == "lora_retriever" and path.is_file()
        }
        wanted = {name: path.read_bytes() for name, path in files.items() if "__pycache__" not in name}
        with ZipFile(wheels[package]) as wheel:
            held = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
        assert held.keys() == wanted.keys()
        assert held == wanted


@pytest.mark.long
def test_an_installed_wheel_answers_the_miniature_outside_any_checkout(wheels: dict[str, Path], tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([*install, *map(str, wheels.values())], check=True, capture_output=True)

    def started(*arguments: str, status: int = 0) -> str:
        command = [str(site / "bin" / "lora-retriever"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    assert started("--version") == f"lora-retriever {__version__}\n"
    assert str(site / "lora_retriever" / "profiles" / "tiny.yaml") in started("profile", "tiny")
    official = {"test.json", "pool.json"}
    assert {f"{elsewhere}/data/official/{name}" for name in official} <= set(started("profile", "llama2-7b").split())
    started("run", "--only", "best_selection", "--limit", "1")
    lines = (elsewhere / "results" / "tiny" / "best_selection.jsonl").read_text(encoding="utf-8").splitlines()
    tasks = [entry["model_name"] for entry in json.loads((TINY / "pool.json").read_text(encoding="utf-8"))]
    assert [json.loads(line)["task"] for line in lines] == tasks
    tiny = site / "lora_retriever" / "profiles" / "tiny"
    trained = ["--base", str(tiny / "base"), "--pool", str(tiny / "pool.json"), "--out", "mine", "--epochs", "0.1"]
    started("train", *trained, "--only", tasks[0])
    assert (elsewhere / "mine" / tasks[0] / "adapter_model.safetensors").exists()
    assert "nowhere" in started("fetch", "--source", "nowhere", status=2)
