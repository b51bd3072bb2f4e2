"""Scorers and encoders of a user's own, by `module:object`: the documentation's examples, records, and mistakes."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT, TINY
from tiny_runs import QUIET, lines_of, tiny_profile, write_profile

from lora_retriever.cli import main
from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import RunsFailedError, UserError
from lora_retriever.experiment.profile import load_profile
from lora_retriever.retrieval.encoders import load_encoder
from lora_retriever.running import evaluate as evaluation
from lora_retriever.running.doctor import examine
from lora_retriever.running.evaluate import evaluate

PAGE = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE[PAGE.index("## Your own scorer") :], re.DOTALL)
"""The documentation's scorer and encoder."""


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """The name of a module `mine` with the documentation's examples, beside the profile; new for every test."""
    before = set(sys.modules)
    (tmp_path / "mine.py").write_text("import helper_of_mine\n" + "\n".join(EXAMPLES))
    (tmp_path / "helper_of_mine.py").write_text("WORD = 1\n")
    yield "mine"
    for added in set(sys.modules) - before:
        if added in ("mine", "helper_of_mine"):
            del sys.modules[added]


def record_of(results: Path, run: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((results / f"{run}.meta.json").read_text())
    return record


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_documentation_s_scorer_answers_and_is_recorded(
    name: str, tmp_path: Path, tiny_pool: list[PoolEntry], tiny_rows: list[Row]
) -> None:
    profile = tiny_profile(tmp_path, retrieval={"scorer": f"{name}:FIRST", "k": 2, "temperature": 0.2})
    evaluate(profile, ["selection", "mixture", "base"], tmp_path / "r", 1, QUIET)
    encoder = load_encoder(TINY / "encoder", instruction="Represent the sentence for similar task retrieval: ")
    samples = encoder.encode([entry.sample[0].inputs for entry in tiny_pool])
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    names = [entry.model_name for entry in tiny_pool]
    for line in lines_of(tmp_path / "r", "mixture"):
        query = encoder.encode([line["inputs"]])[0]
        cosines = samples @ query / np.linalg.norm(query)
        best = np.argsort(-cosines)[:2]
        assert line["adapters"] == [names[place] for place in best]
        powers = np.exp(cosines[best] / 0.2)
        assert line["weights"] == pytest.approx((powers / powers.sum()).tolist(), abs=1e-4)
    record = record_of(tmp_path / "r", "mixture")
    assert record["configuration"]["scorer"] == "mine:FIRST"
    assert "weights" not in record["configuration"], "the scorer declares that its scores are cosines"
    assert record["code"]["files"]["mine.py"] == sha256(tmp_path / "mine.py")
    assert record["code"]["files"]["helper_of_mine.py"] == sha256(tmp_path / "helper_of_mine.py")
    assert record["configuration"]["scorer_source"] != ""
    other = record_of(tmp_path / "r", "base")
    assert not other["configuration"].keys() & {"scorer", "scorer_source", "encoder"}
    assert "mine.py" not in other["code"]["files"]


@pytest.mark.slow
def test_the_documentation_s_encoder_answers_and_is_recorded(
    name: str, tmp_path: Path, tiny_pool: list[PoolEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_RETRIEVER_CACHE", str(tmp_path / "cache"))
    profile = tiny_profile(tmp_path, encoder={"location": f"{name}:LETTERS"}, retrieval={"scorer": "mean_ip", "k": 1})
    evaluate(profile, ["selection", "lorauter", "best_selection"], tmp_path / "r", 1, QUIET)

    def counts(text: str) -> list[int]:
        return [text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]

    means = [np.mean([counts(sample.inputs) for sample in entry.sample], axis=0) for entry in tiny_pool]
    for line in lines_of(tmp_path / "r", "selection"):
        products = [mean @ np.array(counts(line["inputs"])) for mean in means]
        assert line["scores"] == pytest.approx([max(products)], rel=1e-5)
        assert line["adapters"] == [tiny_pool[int(np.argmax(products))].model_name]
    for run in ("selection", "lorauter"):
        record = record_of(tmp_path / "r", run)
        assert record["configuration"]["encoder"].keys() == {"object", "source"}
        assert record["configuration"]["encoder"]["object"] == "mine:LETTERS"
        assert record["code"]["files"]["mine.py"] == sha256(tmp_path / "mine.py")
        assert "encoder" not in record["file_hashes"]
    assert "encoder" not in record_of(tmp_path / "r", "best_selection")["configuration"]
    assert not (tmp_path / "cache" / "embeddings.sqlite").exists()


@pytest.mark.slow
def test_answers_of_another_version_of_own_code_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = {"location": f"{name}:LETTERS"}
    profile = tiny_profile(tmp_path, encoder=encoder, retrieval={"scorer": f"{name}:FIRST", "k": 1})
    evaluate(profile, ["selection"], tmp_path / "r", 1, QUIET)
    monkeypatch.delattr(evaluation, "load_backend")  # so any work that is left would raise
    evaluate(profile, ["selection"], tmp_path / "r", 1, QUIET)
    (tmp_path / "helper_of_mine.py").write_text("WORD = 2\n")
    with pytest.raises(UserError, match=r"selection: changed since: helper_of_mine\.py"):
        evaluate(profile, ["selection"], tmp_path / "r", 1, QUIET)
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match=r"made with another configuration: encoder\.source: .*; scorer_source: "):
        evaluate(profile, ["selection"], tmp_path / "r", 1, QUIET)


@pytest.mark.slow
def test_own_code_runs_only_if_a_method_uses_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('own code ran')\n")
    encoder, retrieval = {"location": f"{name}:LETTERS"}, {"scorer": f"{name}:FIRST"}
    profile = tiny_profile(tmp_path, encoder=encoder, retrieval=retrieval)
    evaluate(profile, ["base"], tmp_path / "r", 1, QUIET)
    with pytest.raises(UserError, match="scorer mine:FIRST: cannot be loaded: SystemExit: own code ran"):
        evaluate(profile, ["selection"], tmp_path / "r", 1, QUIET)
    assert not (tmp_path / "r" / "selection.meta.json").exists()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no module": ({"retrieval": {"scorer": "nowhere_at_all:X"}}, "scorer nowhere_at_all:X: cannot be loaded: Module"),
    "no object": ({"retrieval": {"scorer": "mine:SECOND"}}, "scorer mine:SECOND: cannot be loaded: AttributeError"),
    "no scorer": ({"retrieval": {"scorer": "mine:first"}},
                  "scorer mine:first: expected a lora_retriever.retrieval.scorers.Scorer, not <function first"),
    "a class": ({"encoder": {"location": "mine:Letters"}},
                "encoder mine:Letters: expected an object with a function `encode`, not <class 'mine.Letters'>"),
    "no encoder": ({"encoder": {"location": "mine:FIRST"}}, "encoder mine:FIRST: expected an object with a function"),
    "an instruction": ({"encoder": {"location": "mine:LETTERS", "instruction": "", "layout": "instructor"}},
                       "encoder: mine:LETTERS is an encoder of your own, to which layout, instruction do not apply"),
    "no form of a name": ({"retrieval": {"scorer": "mine:FIRST()"}}, "unknown scorer 'mine:FIRST()'"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_that_names_the_object(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, message = MISTAKES[case]
    arguments = ["--profile", write_profile(tmp_path, **changes), "--results", str(tmp_path / "r")]
    assert main(["run", *arguments, "--only", "selection"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list((tmp_path / "r").glob("*.json*"))


@pytest.mark.slow
def test_an_own_encoder_that_gives_no_embeddings_costs_the_methods_that_need_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Short:\n    def encode(self, texts):\n        return [[1.0, 2.0]]\n\nSHORT = Short()\n"
    )
    profile = tiny_profile(tmp_path, encoder={"location": f"{name}:SHORT"})
    with pytest.raises(RunsFailedError) as error:
        evaluate(profile, ["selection", "best_selection"], tmp_path / "r", 1, QUIET)
    assert "selection: profile mine: encoder: the encoder gives shape (1, 2) for 19 texts" in str(error.value)
    assert record_of(tmp_path / "r", "best_selection")["finished"]
    problems = [finding.text for finding in examine(profile, tmp_path / "d") if finding.level == "problem"]
    assert problems == [
        "encoder: mine:SHORT cannot be used: ValueError: the encoder gives shape (1, 2) for 2 texts, and not "
        "[texts, dim]"
    ]


@pytest.mark.slow
def test_the_doctor_tries_an_own_encoder(name: str, tmp_path: Path) -> None:
    def finding(location: str) -> tuple[str, str]:
        profile = tiny_profile(tmp_path, encoder={"location": location}, methods=["selection"])
        (found,) = [found for found in examine(profile, tmp_path / "r") if found.text.startswith("encoder")]
        return found.level, found.text

    assert finding(f"{name}:LETTERS") == ("ok", "encoder: mine:LETTERS, 26 numbers for a text")
    level, text = finding(f"{name}:NOTHING")
    assert level == "problem"
    assert "encoder mine:NOTHING: cannot be loaded: AttributeError" in text


@pytest.mark.slow
def test_commands_take_own_scorers_and_encoders_of_the_current_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["--encoder", f"{name}:LETTERS", "--scorer", f"{name}:FIRST"]
    pool = ["--pool", str(TINY / "pool.json")]
    rows = ["--inputs", str(TINY / "test.json"), "--json", "figures.json"]
    assert main(["retrieval", *pool, *rows, *own, "cosine"]) == 0
    assert json.loads(Path("figures.json").read_text())["scorers"].keys() == {"mine:FIRST", "cosine"}
    assert main(["index", *pool, *own, "--out", "index"]) == 0
    assert "index: 19 adapters, scorer mine:FIRST" in capsys.readouterr().out


@pytest.mark.slow
def test_own_scorers_are_swept_over(name: str, tmp_path: Path) -> None:
    profile = load_profile(write_profile(tmp_path))
    evaluate(profile, ["selection"], tmp_path / "r", 1, QUIET, [f"scorer=cosine,{name}:FIRST"])
    runs = {path.stem for path in (tmp_path / "r").glob("*.jsonl")}
    assert runs == {"selection@scorer=cosine", "selection@scorer=mine:FIRST"}
