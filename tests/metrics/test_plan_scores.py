"""Scores of plans: KAS against recorded scores of the published code, other scores against computations by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from places import ROOT

from lora_retriever.data.plans import plan_of
from lora_retriever.metrics.base import compute
from lora_retriever.metrics.named import StandardOptions, named_metric
from lora_retriever.metrics.plans import (
    KAS,
    OBJECTS,
    chunks,
    cider,
    f1_aligned,
    f1_in_order,
    has_cider,
    kas,
    length_error,
    words,
)

REFERENCES = ROOT.parent / "shared" / "data" / "gplanet" / "kas_reference.jsonl"


@pytest.mark.slow
def test_kas_has_the_scores_of_the_published_scorer() -> None:
    if not REFERENCES.exists():
        pytest.skip("the recorded scores (../shared/data/gplanet) are not here")
    rows = [json.loads(line) for line in REFERENCES.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 97
    for row in rows:
        assert kas(row["truth"], row["predict"]) == pytest.approx(row["kas"], abs=1e-6), row
        plans = [f"STEP 1: {row[side]} | END" for side in ("predict", "truth")]
        scores = compute(KAS, predictions=plans[:1], references=plans[1:])
        assert scores["kas"] == pytest.approx(100 * row["kas"], abs=1e-4)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("Walk to the left, then pick up the red mug.", "go left, pick, mug"),
        ("STEP 2: Turn around and go to the wooden desk", "turn around, go, desk"),
        ("look left and turn", "look"),
        ("go", ""),
    ],
)
def test_chunks_join_movements_and_drop_what_says_little(step: str, expected: str) -> None:
    assert ", ".join(" ".join(chunk) for chunk in chunks(step)) == expected


def test_a_reference_of_several_turns_loses_every_other_turn() -> None:
    assert kas("turn left turn right take mug", "turn left turn right take mug") == pytest.approx(1, abs=1e-6)
    # {turn right, take, mug} remains of the target, and {take, mug} of the answer
    assert kas("turn left turn right take mug", "turn right take mug") == pytest.approx(1, abs=1e-6)
    assert kas("turn left turn right take mug", "turn left take mug cup") == pytest.approx(2 / 3, abs=1e-6)


def test_a_single_turn_of_the_reference_stays() -> None:
    # {turn left, take, mug} against {turn left, take, cup}; the published denominator has 1e-8 more
    assert kas("turn left take mug", "turn left take cup") == pytest.approx(2 / (3 + 1e-8), abs=1e-12)


def test_a_short_plan_is_padded_and_further_steps_are_ignored() -> None:
    reference, answer = plan_of(["take mug", "take mug", "wash cup"]), plan_of(["take mug"])
    assert compute(KAS, predictions=[answer], references=[reference])["kas"] == pytest.approx(100 * 2 / 3, abs=1e-4)
    longer = plan_of(["take mug", "take mug", "wash cup", "open fridge"])
    assert compute(KAS, predictions=[longer], references=[reference])["kas"] == pytest.approx(100, abs=1e-4)
    assert compute(KAS, predictions=["", "no plan"], references=[reference] * 2)["kas"] == 0
    assert compute(KAS, predictions=[answer], references=[[longer, answer]])["kas"] == pytest.approx(100, abs=1e-4)


def best_pairing(wanted: list[set[str]], given: list[set[str]]) -> int:
    """The maximum number of shared chunks over all pairings that keep the order, by trying all pairings."""
    best = 0
    for size in range(min(len(wanted), len(given)) + 1):
        for left in itertools.combinations(wanted, size):
            for right in itertools.combinations(given, size):
                best = max(best, sum(len(a & b) for a, b in zip(left, right, strict=True)))
    return best


@pytest.mark.slow
def test_f1_counts_all_steps_and_alignment_finds_the_best_pairing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        sides = [
            [
                set(rng.choice(list("pqruvwz"), size=rng.integers(1, 4), replace=False))
                for _ in range(rng.integers(1, 5))
            ]
            for _ in range(2)
        ]
        plans = [plan_of([" ".join(sorted(step)) for step in side]) for side in sides]
        total = sum(len(step) for side in sides for step in side)
        in_order = sum(len(a & b) for a, b in zip(*sides, strict=False))
        assert f1_in_order(*plans) == pytest.approx(2 * in_order / total)
        assert f1_aligned(*plans) == pytest.approx(2 * best_pairing(*sides) / total)
        assert length_error(*plans) == abs(len(sides[0]) - len(sides[1])) / len(sides[0])
    assert f1_in_order("", "") == f1_aligned("", "") == 0


def slow_cider(references: list[str], answers: list[str]) -> float:
    """CIDEr-D by its definition, for steps with one reference each: tf × idf vectors of n-grams, n = 1 to 4, σ = 6."""
    total = 0.0
    for n in range(1, 5):
        grams = [
            [Counter(tuple(step[i : i + n]) for i in range(len(step) - n + 1)) for step in map(words, side)]
            for side in (references, answers)
        ]
        seen = Counter(gram for step in grams[0] for gram in step)
        weight = {
            gram: math.log(len(references)) - math.log(max(1, seen[gram])) for side in grams for s in side for gram in s
        }
        for wanted, given, r, a in zip(*grams, references, answers, strict=True):
            w, g = ({gram: count * weight[gram] for gram, count in one.items()} for one in (wanted, given))
            norms = [math.sqrt(sum(value**2 for value in one.values())) for one in (w, g)]
            shared = sum(min(value, w.get(gram, 0.0)) * w.get(gram, 0.0) for gram, value in g.items())
            lengths = [max(len(words(text)) - 1, 0) for text in (r, a)]  # the library counts bigrams
            if all(norms):
                shared /= norms[0] * norms[1]
            total += shared * math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * 6**2))
    return 10 * total / 4 / len(references)


def test_cider_takes_the_steps_of_the_plan_as_its_corpus() -> None:
    pytest.importorskip("pycocoevalcap")
    wanted = ["turn left and walk to the counter", "pick up the mug", "put the mug in the sink"]
    given = ["turn right and walk to the counter", "pick up the red mug", "put the mug on the table"]
    assert cider([plan_of(wanted)], plan_of(given)) == pytest.approx(slow_cider(wanted, given))
    assert cider([plan_of(wanted)], plan_of(wanted)) == pytest.approx(slow_cider(wanted, wanted))
    assert cider([plan_of(wanted)], plan_of(given[:2])) == pytest.approx(slow_cider(wanted, [*given[:2], given[1]]))
    assert cider([plan_of(wanted)], "") == cider([], plan_of(given)) == 0
    assert has_cider()


def test_a_reference_that_has_ended_counts_for_no_further_step_of_cider() -> None:
    pytest.importorskip("pycocoevalcap")
    wanted = ["walk to the counter", "pick up the mug", "put the mug in the sink"]
    both = cider([plan_of(wanted), plan_of(wanted[:1])], plan_of(wanted))
    assert both == pytest.approx(cider([plan_of(wanted)], plan_of(wanted)))


def test_named_objects_are_counted_where_the_row_has_a_table() -> None:
    header = "id, object_type, position_x [SEP] 0, Agent, 0, 0, 0, 0, 0, 0,  [SEP] "
    tables = [
        f"fetch SCENE DESCRIPTION: {header}1, CounterTop, 0, 0, 0, 0, 0, 0,  [SEP] 2, Mug, 0, 0, 0, 0, 0, 0, 1",
        f"fetch SCENE DESCRIPTION: {header}1, Desk, 0, 0, 0, 0, 0, 0, ",
        "no table",
    ]
    answers = ["STEP 1: take the mugs from the countertop | END", "STEP 1: put the mug on the Desk | END", "mug"]
    sums = OBJECTS.statistics(answers, answers, inputs=tables)  # type: ignore[call-arg]
    assert sums.tolist() == [[2, 2], [1, 2], [0, 0]]
    assert OBJECTS.combine(sums.sum(axis=0)).tolist() == [75.0]
    assert OBJECTS.combine(np.zeros((1, 2))).tolist() == [[0.0]]
    without = OBJECTS.statistics(answers, answers)
    assert without.tolist() == [[0, 0]] * 3
    assert sums.dtype == without.dtype == np.float64


def test_the_longest_name_of_an_object_counts_whether_it_has_a_space_or_not() -> None:
    kinds = ["Agent", "Counter", "CounterTop"]
    lines = [f"{number}, {kind}, 0, 0, 0, 0, 0, 0, " for number, kind in enumerate(kinds)]
    table = "wipe SCENE DESCRIPTION: " + " [SEP] ".join(["id, object_type, position_x", *lines])
    answers = ["wipe the counter top", "wipe the countertop and the counter"]
    sums = OBJECTS.statistics(answers, answers, inputs=[table, table])  # type: ignore[call-arg]
    assert sums.tolist() == [[1, 1], [2, 2]]


def test_standard_scoring_has_the_sound_scores_beside_kas() -> None:
    scores = [name for metric in named_metric("kas").standard(StandardOptions()) for name in metric.scores]
    assert scores[:5] == ["kas", "chunk-f1", "aligned-f1", "length-error", "objects"]
