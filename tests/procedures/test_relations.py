"""Relations in two stages, on the miniature: detection by a head, then extraction; detection against PEFT itself."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from places import ROOT
from safetensors.torch import load_file, save_file
from tiny_runs import QUIET, lines_of, made_once
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_retriever.data.rows import Sample, read_rows
from lora_retriever.data.triples import triples_of
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.generation.detecting import HEAD_FILE, Detector, Head, read_head, write_head
from lora_retriever.methods import Composition
from lora_retriever.procedures.relations import extraction_input, extractions, pairs_of
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.models import inspect_adapters

WORLD = ROOT / "data" / "tiny-procedures"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("tiny-relations")


@pytest.fixture(scope="module")
def answered(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, answered by the oracle under both procedures."""
    return made_once(
        tmp_path_factory,
        "relations",
        lambda folder: evaluate(
            profile, ["best_selection"], folder, None, QUIET, sweep=["procedure=relations,relations_each"]
        ),
    )


@pytest.mark.slow
def test_the_head_gives_the_probabilities_of_the_adapter_under_peft(profile: Profile, answered: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WORLD / "base")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(WORLD / "base"), WORLD / "adapters/relations"
    )
    head = load_file(WORLD / "adapters" / "relations" / HEAD_FILE)
    known = read_head(WORLD / "adapters" / "relations")
    assert known is not None
    for line in lines_of(answered, "best_selection@procedure=relations")[:4]:
        ids = tokenizer(f"{line['inputs']}\nanswer:", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            state = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        chances = (head["weight"] @ state + head["bias"]).sigmoid()
        (reply,) = line["stages"][0]
        expected = {name: p for name, p in zip(known.labels, chances.tolist(), strict=True) if p >= 0.01}
        assert reply["probabilities"] == pytest.approx(expected, abs=1e-4)
        assert {*reply["labels"]} == {name for name, p in expected.items() if p >= known.threshold}


@pytest.mark.slow
def test_each_relation_found_is_asked_for_its_pairs_by_its_own_adapter(answered: Path) -> None:
    for procedure, name in {"relations": "relations_extract", "relations_each": "relations_{}"}.items():
        for line in lines_of(answered, f"best_selection@procedure={procedure}"):
            found, *rest = line["stages"]
            replies = rest[0] if rest else []
            assert [reply["inputs"] for reply in replies] == [
                f"{relation} | {line['inputs']}" for relation in found[0]["labels"]
            ]
            triples = set()
            for relation, reply in zip(found[0]["labels"], replies, strict=True):
                assert reply["adapters"] == [name.format(relation)]
                triples |= {(relation, *pair) for pair in pairs_of(reply["answer"])}
            assert triples_of(line["predicted_answer"]) == triples


@pytest.mark.slow
def test_an_adapter_without_a_head_costs_its_rows_with_a_reason(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(RowsFailedError, match=r"row 0: stage 1: no adapter of the composition has a detection head"):
        evaluate(profile, ["base"], tmp_path, 1, QUIET)
    assert json.loads((tmp_path / "base.meta.json").read_text())["failed_rows"]


def test_a_composition_has_the_mean_of_its_adapters_heads(tmp_path: Path) -> None:
    heads = [Head(("a", "b"), torch.full((2, 3), float(n)), torch.full((2,), float(n)), 0.2 * n) for n in (1, 3)]
    for name, head in zip("xz", heads, strict=True):
        (tmp_path / name).mkdir()
        write_head(head, tmp_path / name)
    (tmp_path / "y").mkdir()
    detector = Detector({name: tmp_path / name for name in "xyz"})
    mixed = detector.head_of(Composition({"x": 0.2, "y": 0.2, "z": 0.6}))
    assert mixed.weight.tolist() == [[2.5] * 3] * 2
    assert mixed.threshold == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"no adapter of the composition has a detection head .*adapters: y"):
        detector.head_of(Composition({"y": 1.0}))
    write_head(Head(("a",), torch.zeros(1, 3), torch.zeros(1), 0.5), tmp_path / "y")
    with pytest.raises(UserError, match="different labels"):
        Detector({name: tmp_path / name for name in "xy"}).head_of(Composition({"x": 0.5, "y": 0.5}))


W, B = torch.ones(2, 3), torch.ones(2)
LABELS = '["a", "b"]'


@pytest.mark.parametrize(
    ("tensors", "labels", "threshold", "reason"),
    [
        ({"weight": W}, LABELS, "0.5", "is no detection head"),
        ({"weight": W, "bias": B}, None, "0.5", "is no detection head"),
        ({"weight": W, "bias": B}, '["a"]', "0.5", "1 labels, but W"),
        ({"weight": W, "bias": B}, LABELS, "7", "no probability"),
        ({"weight": W, "bias": B}, LABELS, "nan", "no probability"),
        ({"weight": W * torch.nan, "bias": B}, LABELS, "0.5", "not finite"),
        ({"weight": W.to(torch.complex64), "bias": B}, LABELS, "0.5", "expected floats"),
        ({"weight": W.to(torch.int8), "bias": B}, LABELS, "0.5", "expected floats"),
        ({"weight": W, "bias": B}, "[" * 50_000 + "]" * 50_000, "0.5", "is no detection head"),
        ({"weight": W, "bias": B}, '"ab"', "0.5", "expected a list of texts"),
        ({"weight": W, "bias": B}, '{"a": 1, "b": 2}', "0.5", "expected a list of texts"),
        ({"weight": W, "bias": B}, '[null, "b"]', "0.5", "expected a list of texts"),
        ({"weight": W, "bias": B}, '["a", "a"]', "0.5", "more than once"),
        ({"weight": W, "bias": B}, '["\\u00e9", "e\\u0301"]', "0.5", "more than once"),
        ({"weight": W, "bias": B}, '["", "b"]', "0.5", "is blank"),
        ({"weight": W, "bias": B}, '["a", "b | c"]', "0.5", r"has a line end, `\|`"),
        ({"weight": W, "bias": B}, '["a", "b\\u2028c"]', "0.5", "has a line end"),
        ({"weight": W, "bias": B}, '["a", " b"]', "0.5", "a space at an end"),
        ({"weight": W, "bias": B}, '["a", "b\\u0000"]', "0.5", "NUL"),
        ({"weight": W, "bias": B}, '["a", "\\ud83d"]', "0.5", "surrogate"),
    ],
)
def test_a_broken_head_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Any], labels: str | None, threshold: str, reason: str
) -> None:
    metadata = {"threshold": threshold} | ({} if labels is None else {"labels": labels})
    save_file(tensors, tmp_path / HEAD_FILE, metadata)
    with pytest.raises(UserError, match=f"{HEAD_FILE}: .*{reason}"):
        read_head(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_a_head_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / HEAD_FILE
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(UserError, match=f"{HEAD_FILE}: is no detection head: this is no file"):
        read_head(tmp_path)


def test_a_label_has_one_unicode_form_in_the_head_and_in_triples(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "né")
    write_head(Head((decomposed,), torch.ones(1, 3), torch.ones(1), 0.5), tmp_path)
    head = read_head(tmp_path)
    assert head is not None
    assert head.labels == ("né",)
    (example,) = extractions(Sample(inputs="x", targets=f"{decomposed} | a | b"))
    assert example.inputs == extraction_input("né", "x")


def test_a_broken_head_is_named_before_the_base_is_loaded(tmp_path: Path) -> None:
    folders = {"first": tmp_path / "first", "second": tmp_path / "second"}
    for folder in folders.values():
        shutil.copytree(next((WORLD / "adapters").glob("*/adapter_config.json")).parent, folder)
    save_file({"weight": W}, tmp_path / "second" / HEAD_FILE)
    assert not inspect_adapters(folders, None).problems
    (problem,) = inspect_adapters(folders, None, detects=True).problems
    assert "adapter 'second'" in problem
    assert f"{HEAD_FILE}: is no detection head" in problem


def test_a_sample_teaches_the_pairs_of_each_relation() -> None:
    sample = Sample(inputs="A, B and C.", targets="R | A | B\nR | A | C\nQ | B | C")
    assert [(one.inputs, one.target) for one in extractions(sample)] == [
        ("Q | A, B and C.", "B | C"),
        ("R | A, B and C.", "A | B\nA | C"),
    ]
    assert pairs_of("A | B\nno pair\nA | B\n | C\nA | C") == [("A", "B"), ("A", "C")]


def test_a_backend_without_a_model_is_refused_before_anything_is_loaded(profile: Profile, tmp_path: Path) -> None:
    served = profile.model_copy(update={"backend": "vllm"})
    with pytest.raises(UserError, match=r"backend: vllm .*detection heads, which the procedure relations needs"):
        evaluate(served, ["best_selection"], tmp_path, 1, QUIET)


@pytest.mark.slow
def test_both_stages_go_on_after_an_interruption(
    profile: Profile, answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Detector.probabilities
    small = profile.model_copy(update={"generation": profile.generation.model_copy(update={"batch_size": 12})})
    calls = []

    def dies(self: Detector, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    evaluate(small, ["best_selection"], tmp_path / "whole", None, QUIET)
    monkeypatch.setattr(Detector, "probabilities", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small, ["best_selection"], tmp_path / "results", None, QUIET)
    evaluate(small, ["best_selection"], tmp_path / "results", None, QUIET)
    assert len(calls) == 3  # one batch before the interruption, and one after it
    first, second = (tmp_path / name / "best_selection.jsonl" for name in ("whole", "results"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_the_miniature_learned_both_stages(answered: Path) -> None:
    rows = read_rows(WORLD / "relations.json")
    lines = lines_of(answered, "best_selection@procedure=relations")
    shared = sum(
        len(triples_of(a["predicted_answer"]) & triples_of(b.targets)) for a, b in zip(lines, rows, strict=True)
    )
    assert shared >= 0.8 * sum(len(triples_of(row.targets)) for row in rows)
