"""Weights by a temperature: of cosines where a scorer gives cosines, of calibrated probabilities elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import made_up_context
from rich.console import Console
from tiny_runs import QUIET, tiny_profile

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.summary import summarize, to_run_table, to_table
from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import nearly_single
from lora_retriever.methods import registered
from lora_retriever.metrics import Scoring
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.retrieval.scorers import SCORERS
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import configuration

RANDOM = np.random.default_rng(5)
NAMES = ["north", "east", "south", "west"]
CENTERS = RANDOM.normal(size=(4, 6))
POOL = [center + RANDOM.normal(scale=1.2, size=(9, 6)) for center in CENTERS]
WORDS = ["snow ice wind", "sun rise tea", "sand heat wind", "sun set rain"]
COMMON = ["road", "hill", "lake", "wind", "sun"]
TEXTS = [[" ".join(RANDOM.permutation([*words.split(), *COMMON])[:3]) for _ in range(9)] for words in WORDS]
QUERIES = CENTERS + RANDOM.normal(scale=0.8, size=(4, 6))
COSINES = {"cosine", "nearest", "knn"}
"""The scorers whose documentation says that their scores are cosines, or means of cosines."""


def weights_under(tiny: Profile, rows: Sequence[Row], index: AdapterIndex, method: str, **settings: Any) -> Any:
    """The weights [rows, k] that a method gives four rows, by the names of the adapters found."""
    texts = ["snow road wind", "sun tea hill", "heat lake sand", "rain set wind"]
    asked = [row.model_copy(update={"inputs": text}) for row, text in zip(rows[:4], texts, strict=True)]
    context = made_up_context(tiny, asked, index, QUERIES, **settings)
    hits = index.search(QUERIES, 4, texts=texts)
    return [c.weights for c in registered()[method].router.route(context)], hits


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("scorer", SCORERS)
def test_weights_are_made_of_cosines_or_of_probabilities(
    tiny: Profile, tiny_rows: list[Row], scorer: str, temperature: float
) -> None:
    index = AdapterIndex.from_embeddings(NAMES, POOL, scorer, TEXTS)
    found, hits = weights_under(tiny, tiny_rows, index, "mixture", k=3, temperature=temperature)
    assert hits.probabilities is not None
    for row, weights in enumerate(found):
        if scorer in COSINES:
            powers = [math.exp(score / temperature) for score in hits.scores[row, :3].tolist()]
        else:
            powers = [chance ** (1 / temperature) for chance in hits.probabilities[row, :3].tolist()]
        expected = dict(zip(hits.names[row], [power / sum(powers) for power in powers], strict=False))
        assert weights == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert any(max(weights.values()) < 0.9 for weights in found) or temperature < 1


@pytest.mark.parametrize("scorer", SCORERS)
def test_only_scores_that_are_cosines_are_weighed_as_cosines(scorer: str) -> None:
    assert (SCORERS[scorer].weights == "cosine") == (scorer in COSINES)
    index = AdapterIndex.from_embeddings(NAMES, [9 * samples for samples in POOL], scorer, TEXTS)
    scores = index.search(30 * QUERIES, 4, texts=["snow", "sun", "heat", "rain"]).scores
    assert (np.abs(scores).max() <= 1 + 1e-5) == (scorer in COSINES)


def test_the_probabilities_of_one_adapter_s_weight_are_shares_of_its_rivals(
    tiny: Profile, tiny_rows: list[Row]
) -> None:
    """At temperature 1 the weights are the probabilities of the k found, scaled to sum to 1; DARE squares them."""
    index = AdapterIndex.from_embeddings(NAMES, POOL, "discriminant", TEXTS)
    mixture, hits = weights_under(tiny, tiny_rows, index, "mixture", k=2, temperature=1)
    squared, _ = weights_under(tiny, tiny_rows, index, "dare", k=2, temperature=1)
    for row in range(4):
        first, second = hits.probabilities[row, :2].tolist()
        assert list(mixture[row].values()) == pytest.approx([first / (first + second), second / (first + second)])
        assert list(squared[row].values()) == pytest.approx([weight**2 for weight in mixture[row].values()])


def test_a_pool_without_probabilities_refuses_a_temperature(tiny: Profile, tiny_rows: list[Row]) -> None:
    single = AdapterIndex.from_embeddings(NAMES, [samples[:1] for samples in POOL], "discriminant")
    with pytest.raises(UserError, match=r"retrieval\.temperature: scorer discriminant has no calibrated probabilities"):
        weights_under(tiny, tiny_rows, single, "mixture", k=2, temperature=1)
    assert weights_under(tiny, tiny_rows, single, "mixture", k=2)[0][0] == pytest.approx(
        dict.fromkeys(single.search(QUERIES, 2).names[0], 0.5)
    )
    cosine = single.rescored("cosine")
    assert len(weights_under(tiny, tiny_rows, cosine, "mixture", k=2, temperature=1)[0]) == 4


@pytest.mark.slow
def test_a_configuration_says_what_weights_are_made_of_only_under_a_temperature(tiny: Profile) -> None:
    benchmark = open_benchmark(tiny, limit=1)
    mixture, selection = registered()["mixture"], registered()["selection"]

    def added(method: Any, **settings: Any) -> dict[str, Any]:
        before = configuration(tiny.replaced({"scorer": settings["scorer"]}, "the test"), benchmark, method)
        after = configuration(tiny.replaced(settings, "the test"), benchmark, method)
        assert after.items() >= before.items()
        return {name: value for name, value in after.items() if name not in before}

    assert added(mixture, scorer="cosine", temperature=0.2) == {"temperature": 0.2}
    assert added(mixture, scorer="hybrid", temperature=0.2) == {"temperature": 0.2, "weights": "probability"}
    assert added(selection, scorer="hybrid", temperature=0.2) == {}


# Runs whose k adapters are in effect one


@pytest.mark.parametrize(
    ("k", "weights", "single"),
    [
        (3, [[0.995, 0.004, 0.001]] * 19 + [[0.5, 0.3, 0.2]], 19),
        (3, [[0.995, 0.004, 0.001]] * 18 + [[0.5, 0.3, 0.2]] * 2, None),
        (3, [[0.99, 0.005, 0.005]] * 20, None),
        (2, [[1.0]] * 5, 5),
        (2, [[1.0], [0.998, 0.002], [4.0, 0.001]], 3),
        (1, [[1.0]] * 5, None),
        (2, [[]] * 3 + [[1.0]], None),
        (2, [], None),
    ],
)
def test_nearly_all_rows_with_nearly_all_weight_on_one_adapter_are_noted(
    k: int, weights: list[list[float]], single: int | None
) -> None:
    note = nearly_single("mine", k, weights)
    assert note == (
        None
        if single is None
        else f"mine: in {single} of {len(weights)} rows, one adapter has more than 99 % of the weight, so the k = {k} "
        "adapters are in effect one. A higher temperature spreads the weights"
    )


@pytest.mark.long
def test_a_run_whose_adapters_are_in_effect_one_says_so_where_notes_are_shown(tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path, retrieval={"scorer": "hybrid", "k": 3, "temperature": 0.2})
    console = Console(record=True, width=400, quiet=False, file=(tmp_path / "printed").open("w"))
    evaluate(profile, ["mixture", "selection", "lorauter"], tmp_path / "r", 1, console)
    evaluate(profile.replaced({"temperature": None}, "the test"), ["mixture"], tmp_path / "equal", 1, QUIET)
    note = (
        "mixture: in 19 of 19 rows, one adapter has more than 99 % of the weight, so the k = 3 adapters are in effect "
        "one. A higher temperature spreads the weights"
    )
    assert [line for line in console.export_text().splitlines() if "in effect" in line] == [f"warning: {note}"]
    for folder, expected in (("r", [f"{note}."]), ("equal", [])):
        summaries = summarize(read_runs(tmp_path / folder), Scoring("paper"))
        for table in (to_table(summaries), to_run_table(summaries)):
            assert [line for line in table.notes if "in effect" in line] == expected
