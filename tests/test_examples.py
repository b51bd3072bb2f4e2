"""The tutorial: its notebook has the steps of its script, and the steps work on the miniature."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from make_notebook import notebook_of, text_of
from places import ROOT, TINY
from tiny_runs import lines_of

from lora_retriever.cli import main

EXAMPLES = ROOT / "examples"


def test_the_notebook_has_the_steps_of_the_script() -> None:
    notebook = notebook_of((EXAMPLES / "tutorial.py").read_text(encoding="utf-8"))
    assert (EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8") == text_of(notebook), (
        "make it anew: python scripts/make_notebook.py examples/tutorial.py"
    )
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    steps = (EXAMPLES / "tutorial.py").read_text(encoding="utf-8").split("\n")
    assert [line for cell in code for line in cell.split("\n") if line] == [
        line for line in steps if line and not line.startswith("#")
    ]


@pytest.mark.long
def test_the_tutorial_leads_from_a_csv_file_to_a_saved_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("EPOCHS", "0.1")
    monkeypatch.delenv("BASE", raising=False)
    runpy.run_path(str(EXAMPLES / "tutorial.py"))
    said = capsys.readouterr().out
    assert "mean over tasks" in said
    assert len(lines_of(tmp_path / "answers", "mixture")) == 40
    assert all(len(line["adapters"]) == 2 for line in lines_of(tmp_path / "answers", "mixture"))
    assert (tmp_path / "answers" / "report.html").exists()
    saved = json.loads((tmp_path / "mixture" / "adapter_config.json").read_text())
    assert saved["r"] == 16


@pytest.mark.long
def test_every_command_of_the_tutorials_page_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(TINY / "base")
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    kinds = ("where", "turn", "who", "mood")
    lines = [f"{kind} {place}?,answer {place},{kind}" for kind in kinds for place in range(50)]
    (tmp_path / "mine.csv").write_text("\n".join(["prompt,completion,kind", *lines]))
    ran = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        if language == "python":
            exec(block, {})
        elif language == "yaml":
            (tmp_path / "mine.yaml").write_text(block)
        elif language == "bash":
            for command in block.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(command.replace("--epochs 5", "--epochs 0.05"))
                assert program == "lora-retriever"
                assert main(arguments) == 0, command
                ran.append(arguments[0])
    wanted = ["audit", "train", "doctor", "prompts", "run", "summarize", "summarize", "report", "compose"]
    assert ran == wanted
    assert {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("*.csv")} == {
        "mine.csv": 201, "questions.csv": 41, "train.csv": 161,
    }  # fmt: skip
    assert all(len(line["adapters"]) == 2 for line in lines_of(tmp_path / "results" / "mine", "mixture"))
    assert "mean over tasks" in capsys.readouterr().out
    assert (tmp_path / "results" / "mine" / "report.html").exists()
    assert json.loads((tmp_path / "mixture" / "adapter_config.json").read_text())["r"] == 16
