"""AdapterSoup: one soup for all rows, of the adapters nearest to the mean of their embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from lora_retriever.errors import UserError
from lora_retriever.methods.adaptersoup import METHODS, AdapterSoup
from lora_retriever.methods.context import Context
from lora_retriever.retrieval.encoders import load_encoder

ContextOf = Callable[..., Context]


def plain_ranking(context: Context) -> list[tuple[str, float]]:
    """All adapters with their cosines to the mean of the rows, the best first, computed number by number."""
    profile, rows = context._profile, context.queries.astype(np.float64)
    encoder = load_encoder(context._resources.benchmark.encoder, profile.encoder.layout, profile.encoder.instruction)
    mean = sum(rows) / len(rows)
    ranking = []
    for entry in context.pool:
        samples = encoder.encode([sample.inputs for sample in entry.sample]).astype(np.float64)
        adapter = sum(samples) / len(samples)
        ranking.append((entry.model_name, float(mean @ adapter / np.sqrt((mean @ mean) * (adapter @ adapter)))))
    return sorted(ranking, key=lambda entry: -entry[1])


@pytest.mark.slow
def test_every_row_gets_the_three_adapters_nearest_to_the_mean_of_all_rows(context_of: ContextOf) -> None:
    context = context_of()
    best = plain_ranking(context)[:3]
    for composition in AdapterSoup().route(context):
        assert composition.adapters == tuple(name for name, _ in best)
        assert set(composition.weights.values()) == {1 / 3}
        assert composition.scores == pytest.approx(dict(best), abs=1e-5)


@pytest.mark.slow
def test_the_next_best_takes_the_place_of_a_masked_adapter(context_of: ContextOf) -> None:
    context = context_of(masked=True)
    ranking = [name for name, _ in plain_ranking(context)]
    changed = Counter()
    for row, composition in zip(context.rows, AdapterSoup().route(context), strict=True):
        assert list(composition.adapters) == [name for name in ranking if name != row.task][:3]
        changed[composition.adapters] += 1
    assert len(changed) == 4  # one of the three is masked, or no adapter


@pytest.mark.slow
def test_the_profiles_scorer_has_no_say(context_of: ContextOf) -> None:
    assert AdapterSoup().route(context_of(scorer="nearest")) == AdapterSoup().route(context_of())


@pytest.mark.slow
def test_the_size_of_the_soup_is_an_option(context_of: ContextOf) -> None:
    (soup, masked) = (method.with_options({"k": 2}) for method in METHODS)
    assert soup.adapters_needed(k=7) == 2
    assert {len(composition.adapters) for composition in soup.router.route(context_of())} == {2}
    assert (masked.name, masked.masked, soup.mode) == ("adaptersoup_ood", True, "fusion")
    with pytest.raises(UserError, match="k is 0"):
        METHODS[0].with_options({"k": 0})


@pytest.mark.slow
def test_a_soup_of_the_whole_pool_without_a_rows_own(context_of: ContextOf) -> None:
    context = context_of(masked=True)
    for row, composition in zip(context.rows, AdapterSoup(context.available).route(context), strict=True):
        assert set(composition.adapters) == set(context.names) - {row.task}
