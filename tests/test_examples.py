"""The tutorial: its notebook has the steps of its script, and the steps work on the miniature."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from make_notebook import notebook_of, text_of
from places import ROOT
from tiny_runs import lines_of

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
