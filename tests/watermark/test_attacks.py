"""The matrix of attacks: changes of tensors against loops, and a whole matrix of the miniature that is continued."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from conftest import TASK, Marked  # type: ignore[import-not-found]
from places import TINY

from lora_retriever.cli import main
from lora_retriever.data.rows import Row
from lora_retriever.watermark.attacks import harm
from lora_retriever.watermark.attacks.changing import pruned, rounded
from lora_retriever.watermark.attacks.harm import Harm
from lora_retriever.watermark.attacks.matrix import alarm_table, attack_table, harm_table
from lora_retriever.watermark.attacks.scene import MARKED, Measured, Scene


def test_pruning_sets_the_smallest_numbers_to_zero() -> None:
    tensor = torch.tensor([[3.0, -1.0, 0.5], [-4.0, 2.0, 1.5]])
    assert pruned(tensor, 0.5).tolist() == [[3.0, 0.0, 0.0], [-4.0, 2.0, 0.0]]
    assert torch.equal(pruned(tensor, 0.1), tensor)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_keeps_the_largest_number_of_a_row_and_moves_the_others_by_half_a_step(bits: int) -> None:
    tensor = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    for row, changed in zip(tensor.tolist(), rounded(tensor, bits).tolist(), strict=True):
        step = max(map(abs, row)) / (2 ** (bits - 1) - 1)
        assert all(abs(a - b) <= step / 2 + 1e-6 for a, b in zip(row, changed, strict=True))
        assert len({round(value / step) for value in changed}) <= 2**bits - 1
        assert max(map(abs, changed)) == pytest.approx(max(map(abs, row)))


@pytest.mark.parametrize(
    ("marked", "unmarked", "scores", "differing"),
    [
        ("b x b x b", "b b x x b", (60, 60), (1, 1)),
        ("x x b b b", "b b b b b", (60, 100), (0, 2)),
        ("b x b x x", "b x b x x", (40, 40), (0, 0)),
    ],
)
def test_harm_is_the_difference_of_two_scores_on_the_same_rows(
    marked: str, unmarked: str, scores: tuple[float, float], differing: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with the target b. A side on which no row differs is bounded by the exact binomial bound of 0 of n."""
    rows = [
        Row(id=place, inputs=f"{place}?", targets="b", task="t", domain="d", metric="em")
        for place in range(len(marked.split()))
    ]
    answers = {MARKED: marked.split(), "unmarked": unmarked.split()}
    monkeypatch.setattr(harm, "_answers", lambda _, adapter, inputs: answers[adapter])
    monkeypatch.setattr(harm, "Generator", lambda *_: None)
    settings = SimpleNamespace(model_copy=lambda update: None)
    scene = SimpleNamespace(
        unmarked="unmarked", rows=rows, generator=SimpleNamespace(model=0, tokenizer=0, settings=settings)
    )
    found = harm.measure_harm(cast(Scene, scene))
    assert (found.marked, found.unmarked) == scores
    assert (found.better, found.worse) == differing
    assert found.low <= scores[0] - scores[1] <= found.high
    bound = 100 * (1 - 0.025 ** (1 / len(rows)))
    if not found.better:
        assert found.high == pytest.approx(bound)
    if not found.worse:
        assert found.low == pytest.approx(-bound)


def line(group: str, attack: str, *measured: Measured) -> dict[str, object]:
    return {"group": group, "attack": attack, "measured": [each.as_json() for each in measured]}


def test_tables_show_the_worst_suspect_and_count_false_alarms() -> None:
    results = [
        line("composing", "mixture with 2", Measured(3, 16, 1e-5, 1e-9, 0.4), Measured(0, 16, 1.0, 0.2)),
        line("composing", "too few adapters"),
        line("innocents", "base", Measured(0, 16, 1.0, 0.04)),
        line("innocents", "decoy keys", Measured(1, 16, 0.06, 0.5), Measured(0, 16, 1.0, 0.009)),
    ]
    attacked = attack_table(results, 1e-3)
    assert [label for label, _ in attacked.rows] == ["mixture with 2"]
    assert attacked.rows[0][1][2:] == ["1.0e+00", "2.0e-01", "4.0e-01", "1 of 2", "1 of 2"]
    alarms = dict(alarm_table(results).rows)
    shares = [cell.value for cell in alarms["all"][4:] if cell is not None and not isinstance(cell, str)]
    assert shares == pytest.approx([0, 0, 200 / 3, 100 / 3])
    table = harm_table(Harm("em", 200, 94.5, 95.0, -2.0, 1.0, 1, 2))
    cell = table.rows[0][1][3]
    assert not isinstance(cell, str) and cell is not None and (cell.value, cell.low, cell.high) == (-0.5, -2.0, 1.0)


@pytest.mark.long
def test_a_matrix_is_measured_written_and_resumed(
    marked: Marked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All groups with few draws; then the same call, which measures nothing anew; then a call with another setting."""
    (tmp_path / "others").mkdir()
    for name in ("city_qa", "passive", "synonyms"):
        (tmp_path / "others" / name).symlink_to(TINY / "adapters" / name)
    call = ["watermark", "attack", "--key", str(marked.folder / "key"), "--adapter", str(marked.adapter)]
    call += ["--unmarked", str(TINY / "adapters" / TASK), "--others", str(tmp_path / "others"), "--device", "cpu"]
    call += ["--base", str(TINY / "base"), "--out", str(tmp_path / "out"), "--draws", "1", "--decoys", "3"]
    call += ["--samples", str(TINY / "pool.json"), "--task", TASK, "--other-task", "passive", "--epochs", "0.5"]
    call += ["--rows", str(TINY / "test.json"), "--pool", str(TINY / "pool.json"), "--log-file", str(tmp_path / "log")]
    assert main(call) == 0
    said = capsys.readouterr().out
    results = [json.loads(text) for text in (tmp_path / "out" / "attacks.jsonl").read_text().splitlines()]
    by_name = {result["attack"]: result for result in results}
    assert {result["group"] for result in results} == {
        *("composing", "merging", "training", "changing", "asking", "routing", "innocents", "harm")
    }
    assert by_name["alone (a selection)"]["measured"][0]["p_ranks"] < 1e-3
    assert [each["p_hits"] > 1e-3 for each in by_name["unmarked adapters"]["measured"]] == [True] * 4
    assert len(by_name["decoy keys"]["measured"]) == 3
    assert by_name["harm"]["harm"]["rows"] == 30
    for name in ("mixture with 3", "TIES, density 0.5, with 2", "weight -1", "pruned by 70 %", "int4", "rank 1 of 8"):
        assert by_name[name]["measured"], name
    assert "trained further, passive, 0.5 epochs" in by_name and "mixture with 10" not in by_name
    assert "routed by lexical, fusion of 3" in said and "decoy keys" in said and "unmarked" in said
    for file in (*(tmp_path / "out").iterdir(), tmp_path / "log"):
        assert marked.key.secret.hex() not in file.read_text()
        assert not any(" ".join(marked.key.phrase(number)) in file.read_text() for number in range(8))
    assert not (tmp_path / "out" / "scratch").exists()

    written = (tmp_path / "out" / "attacks.jsonl").stat().st_mtime_ns
    assert main(call) == 0
    assert capsys.readouterr().out == said
    assert (tmp_path / "out" / "attacks.jsonl").stat().st_mtime_ns == written
    assert main([*call, "--seed", "1"]) == 2
    assert "has results of another adapter, key or setting" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "x"], "unknown group x"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--rows", str(TINY / "test.json"), "--task", "none"], "has no row of the task none"),
        (["--pool", str(TINY / "pool.json"), "--task", "none"], "has no entry for the marked adapter"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watermark", "key", "--out", str(tmp_path / "key")]) == 0
    call = ["watermark", "attack", "--key", str(tmp_path / "key"), "--adapter", str(TINY / "adapters" / TASK)]
    call += ["--base", str(TINY / "base"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*call, *arguments]) == 2
    assert message in capsys.readouterr().err
