"""The main path on the bundled miniature: right answers, whatever the batch, the order, or the interruptions."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import made_up_context
from places import TINY
from safetensors.torch import load_file
from tiny_runs import QUIET, lines_of, tiny_profile
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_retriever import AdapterIndex
from lora_retriever.cli import main
from lora_retriever.data.further import LINE_FIELDS
from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.answer import Answer, GateUse
from lora_retriever.generation.batches import Request, WindowSize, plan_batches, plan_windows
from lora_retriever.generation.loading import load_composable
from lora_retriever.generation.prompt import ALPACA, Prompt
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.methods import Composition, Method, registered
from lora_retriever.methods.paper import METHODS, Nearest, Nothing, Own
from lora_retriever.running.answering import answer_line
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import PlannedRow
from lora_retriever.running.run_file import Line, RunFile


def dense_answer(line: dict[str, Any], mode: str, max_new_tokens: int) -> str:
    """The greedy answer, token by token, of a base whose matrices contain the row's composition; the row is alone."""
    model = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    downs: dict[str, torch.Tensor] = {}
    ups: dict[str, torch.Tensor] = {}
    updates: dict[str, torch.Tensor] = {}
    for name, weight in zip(line["adapters"], line["weights"], strict=True):
        folder = TINY / "adapters" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in tensors:
            if key.endswith("lora_A.weight"):
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                down = tensors[key].float()
                up = config["lora_alpha"] / config["r"] * tensors[key.replace("lora_A", "lora_B")].float()
                updates[module] = updates.get(module, 0) + weight * up @ down
                downs[module] = downs.get(module, 0) + weight * down
                ups[module] = ups.get(module, 0) + weight * up
    for module in updates:
        model.get_submodule(module).weight.data += updates[module] if mode == "mixture" else ups[module] @ downs[module]
    tokens = tokenizer(ALPACA.replace("{inputs}", line["inputs"]))["input_ids"]
    start = len(tokens)
    with torch.no_grad():
        while len(tokens) < start + max_new_tokens and tokens[-1] != tokenizer.eos_token_id:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_answer_is_the_dense_models(paper_runs: Path, tiny: Profile, method: Method) -> None:
    lines = lines_of(paper_runs, method.name)
    assert len(lines) == len({line["task"] for line in lines}) >= 16
    for line in lines[::4]:
        assert line["predicted_answer"] == dense_answer(line, method.mode, tiny.generation.max_new_tokens), line


@pytest.mark.slow
def test_a_line_holds_the_row_and_what_was_used(paper_runs: Path, tiny_rows: list[Row]) -> None:
    rows = {row.id: row for row in tiny_rows}
    for method in METHODS:
        for line in lines_of(paper_runs, method.name):
            row = rows[line["id"]]
            assert Row.model_validate(line) == row
            assert len(line["adapters"]) == len(line["weights"]) == len(line["scores"])
            assert line["truncated_tokens"] == 0
            assert 1 <= line["generated_tokens"] <= 24
            if isinstance(method.router, Nothing):
                assert line["adapters"] == []
            if isinstance(method.router, Own):
                assert line["adapters"] == [row.task]
            if isinstance(method.router, Nearest):
                assert len(line["adapters"]) == method.adapters_needed(3)
                assert sum(line["weights"]) == pytest.approx(1)
                assert line["scores"] == sorted(line["scores"], reverse=True)
            if method.masked:
                assert row.task not in line["adapters"]


def test_a_line_keeps_the_rows_further_fields_and_its_own_fields_are_none_of_them() -> None:
    row = {
        "inputs": "a",
        "targets": "b",
        "task": "t",
        "domain": "d",
        "metric": "choice",
        "id": 4,
        "options": ["b", "c"],
    }
    composed = (Prompt([1], 0, shots=2), Composition({"t": 1.0}))
    answer = Answer("", 0, GateUse({"t": 1.0}, 0.0), (-2.0, -1.0))
    plain = answer_line(PlannedRow(Row(**row), *composed), answer)
    assert plain.keys() | {"procedure", "stages"} == LINE_FIELDS
    assert plain["predicted_answer"] == "c"
    further = {"instruction": "seen", "length": 3}
    assert answer_line(PlannedRow(Row(**row, further=further), *composed), answer) == {**plain, **further}


@pytest.mark.slow
def test_further_fields_are_in_the_answers_and_a_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((TINY / "test.json").read_text())[:6]
    values = ["seen", "unseen"] * 3
    further = [{**row, "instruction": value} for row, value in zip(rows, values, strict=True)]
    (tmp_path / "rows.json").write_text(json.dumps(further))
    profile = tiny_profile(tmp_path, data={"rows": "rows.json", "pool": f"{TINY}/pool.json"})
    evaluate(profile, ["best_selection"], tmp_path / "results", None, QUIET)
    path = tmp_path / "results" / "best_selection.jsonl"
    written = path.read_bytes()
    assert [json.loads(line)["instruction"] for line in written.splitlines()] == values
    path.write_bytes(b"".join(written.splitlines(keepends=True)[:2]))
    evaluate(profile, ["best_selection"], tmp_path / "results", None, QUIET)
    assert path.read_bytes() == written
    assert main(["summarize", str(tmp_path / "results"), "--by", "instruction", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith(",best_selection seen,")


@pytest.mark.slow
def test_later_batches_are_composed_like_the_first(paper_runs: Path, tmp_path: Path) -> None:
    """Fault 1 of the original: only the first batch is composed. Here batches of 2 and of 32 must agree."""
    small = tiny_profile(tmp_path, generation={"batch_size": 2})
    evaluate(small, ["mixture"], tmp_path / "results", limit=1, console=QUIET)
    answers = [
        [line["predicted_answer"] for line in lines_of(results, "mixture")]
        for results in (tmp_path / "results", paper_runs)
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_rotary_frequencies_stay_float32() -> None:
    """Fault 9 of the original: `.bfloat16()` rounds the frequencies, and far positions get wrong angles."""
    model = load_composable(TINY / "base", {}, torch.bfloat16, "cpu").base
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    assert model.dtype == torch.bfloat16
    assert frequencies
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)


@pytest.fixture
def finished(paper_runs: Path, tmp_path: Path) -> Path:
    """A copy of the eight runs, to be evaluated again."""
    return shutil.copytree(paper_runs, tmp_path / "finished")


@pytest.mark.slow
def test_a_finished_folder_is_left_alone(finished: Path, tiny: Profile) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.json*")}
    evaluate(tiny, None, finished, limit=1, console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.json*")} == before


@pytest.mark.slow
def test_a_changed_setting_never_mixes_into_old_files(finished: Path, tmp_path: Path) -> None:
    other = tiny_profile(tmp_path, generation={"max_new_tokens": 5})
    with pytest.raises(UserError, match=r"another configuration: generation\.max_new_tokens: 24 → 5"):
        evaluate(other, ["base"], finished, limit=1, console=QUIET)


def without_timings(results: Path, name: str) -> tuple[bytes, dict[str, Any]]:
    record = json.loads((results / f"{name}.meta.json").read_text())
    return (results / f"{name}.jsonl").read_bytes(), {key: record[key] for key in record if key != "timings"}


FORKED = multiprocessing.get_context("fork")


def kill_midway(profile: Profile, methods: list[str], results: Path, name: str, batches: int, seconds: float) -> None:
    """Evaluate in another process, and kill the process some seconds after the run `name` has saved some batches.

    After these batches, the process waits at every batch, so that the kill comes midway on any machine.
    """
    allowed = FORKED.Semaphore(batches)
    append = RunFile.append

    def append_and_wait(run: RunFile, lines: list[Line]) -> None:
        append(run, lines)
        if run.name == name:
            allowed.acquire()

    def work() -> None:
        RunFile.append = append_and_wait  # type: ignore[method-assign]
        evaluate(profile, methods, results, limit=2, console=QUIET)

    process = FORKED.Process(target=work)
    process.start()
    try:
        while process.is_alive() and allowed.get_value() > 0:
            time.sleep(0.002)
        time.sleep(seconds)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    saved = (results / f"{name}.jsonl.partial").read_text(encoding="utf-8").splitlines()
    assert batches <= len(saved) < 38
    assert not (results / f"{name}.jsonl").exists()


@pytest.mark.long
def test_killed_runs_go_on_to_the_very_files_of_an_undisturbed_run(runs_in_threes: Path, tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path, generation={"batch_size": 3})
    methods, killed = ["selection", "mixture_ood"], tmp_path / "killed"
    moment = random.Random(0)
    for name, batches in (("selection", 2), ("selection", 3), ("mixture_ood", 5)):
        kill_midway(profile, methods, killed, name, batches, moment.random() * 0.2)
    evaluate(profile, methods, killed, limit=2, console=QUIET)
    assert not list(killed.glob("*.partial"))
    for name in methods:
        assert without_timings(killed, name) == without_timings(runs_in_threes, name)


@pytest.mark.slow
def test_rows_without_an_adapter_fail_alone_and_are_listed(tmp_path: Path, tiny_rows: list[Row]) -> None:
    rows = [row.model_dump() for row in tiny_rows[:3]]
    rows[1]["task"] = "unheard_of"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    profile = tiny_profile(tmp_path)
    profile = profile.model_copy(update={"data": profile.data.model_copy(update={"rows": str(tmp_path / "rows.json")})})
    with pytest.raises(RowsFailedError, match=r"1 rows failed.*\nbest_selection: row 1: no adapter 'unheard_of'"):
        evaluate(profile, ["mixture", "best_selection"], tmp_path / "results", limit=None, console=QUIET)
    assert [line["id"] for line in lines_of(tmp_path / "results", "best_selection")] == [0, 2]
    assert [line["id"] for line in lines_of(tmp_path / "results", "mixture")] == [0, 1, 2]
    meta = json.loads((tmp_path / "results" / "best_selection.meta.json").read_text())
    assert meta["failed_rows"] == [{"id": 1, "reason": "no adapter 'unheard_of' in the pool"}]
    assert meta["finished"] is False


@pytest.mark.slow
def test_truncation_is_counted(tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path, generation={"max_prompt_tokens": 52})
    evaluate(profile, ["base"], tmp_path / "results", limit=1, console=QUIET)
    cut = [line["truncated_tokens"] for line in lines_of(tmp_path / "results", "base")]
    assert any(tokens > 0 for tokens in cut)
    meta = json.loads((tmp_path / "results" / "base.meta.json").read_text())
    assert meta["truncated_rows"] == sum(tokens > 0 for tokens in cut)


@pytest.mark.slow
def test_a_k_beyond_the_pool_is_refused_before_anything_runs(tmp_path: Path, tiny_pool: list[Any]) -> None:
    profile = tiny_profile(tmp_path)
    big = profile.model_copy(update={"retrieval": profile.retrieval.model_copy(update={"k": len(tiny_pool)})})
    with pytest.raises(UserError, match="mixture_ood gives a row k"):
        evaluate(big, ["mixture_ood"], tmp_path / "results", limit=1, console=QUIET)
    assert not list((tmp_path / "results").glob("*.json*"))


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line(tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk under .* is full"):
        evaluate(tiny, ["base"], tmp_path / "results", limit=1, console=QUIET)


def test_batches_hold_prompts_of_similar_length_the_longest_first() -> None:
    lengths = [5, 9, 9, 1, 7]
    requests = [Request(id, Prompt([0] * length, 0), Composition()) for id, length in enumerate(lengths)]

    def ids(**settings: int) -> list[list[int]]:
        return [[request.id for request in batch] for batch in plan_batches(requests, GenerationSection(**settings))]

    assert ids(batch_size=2) == [[1, 2], [4, 0], [3]]
    # Rows of 9 + 1 tokens fit twice, rows of 7 + 1 tokens three times. A single row always fits.
    assert ids(batch_size=8, batch_tokens=24, max_new_tokens=1) == [[1, 2], [4, 0, 3]]
    assert ids(batch_size=8, batch_tokens=3, max_new_tokens=1) == [[1], [2], [4], [0], [3]]


def test_windows_hold_the_longest_prompts_first_and_do_not_depend_on_what_is_done() -> None:
    requests = [Request(id, Prompt([0] * (1 + id % 7), 0), Composition()) for id in range(100)]

    def windows(size: WindowSize, **settings: int) -> list[list[Request]]:
        return plan_windows(requests, GenerationSection(max_new_tokens=1, **settings), size)

    assert [len(window) for window in windows(WindowSize(8, 30), batch_size=2)] == [30, 30, 30, 10]
    assert [len(window) for window in windows(WindowSize(8, 1), batch_size=5)] == [40, 40, 20]
    # 4 rows of 7 + 1 tokens fit into a batch, and later 5 rows of 5 + 1 tokens. A window has two full batches.
    sizes = [len(window) for window in windows(WindowSize(2, 1), batch_size=64, batch_tokens=32)]
    assert sizes[0] == 8 and sizes == sorted(sizes[:-1]) + sizes[-1:]
    for planned in (windows(WindowSize(2, 1), batch_size=6), windows(WindowSize(8, 256), batch_size=6)):
        rows = [request for window in planned for request in window]
        assert [request.id for request in rows] == sorted(range(100), key=lambda id: (-(id % 7), id))


@pytest.mark.slow
def test_a_row_records_more_of_its_search_than_it_uses(
    tiny: Profile, tiny_rows: list[Row], tiny_pool: list[PoolEntry]
) -> None:
    """The top 8 with calibrated probabilities, so that another k can be studied without encoding again."""
    generator = np.random.default_rng(0)
    names = [entry.model_name for entry in tiny_pool]
    pool = [generator.normal(size=(4, 6)).astype(np.float32) for _ in names]
    queries = generator.normal(size=(len(tiny_rows), 6)).astype(np.float32)
    index = AdapterIndex.from_embeddings(names, pool)
    for method, masked in (("mixture", False), ("mixture_ood", True)):
        assert registered()[method].masked == masked
        hits = index.search(queries, 8, [row.task for row in tiny_rows] if masked else None)
        setting = made_up_context(tiny, tiny_rows, index, queries, masked, k=3)
        for place, composition in enumerate(registered()[method].router.route(setting)):
            assert composition.retrieved is not None
            assert list(composition.retrieved.adapters) == hits.names[place]
            assert composition.adapters == composition.retrieved.adapters[:3]
            assert hits.probabilities is not None
            assert composition.retrieved.probabilities == pytest.approx(hits.probabilities[place], abs=1e-6)
