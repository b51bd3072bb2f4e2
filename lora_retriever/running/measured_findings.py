"""The findings of `lora-retriever doctor --measure`, from the figures that were measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.loading import load_config
from lora_retriever.methods import methods_of
from lora_retriever.running.doctor import Finding
from lora_retriever.running.measuring import K, Measured, measure
from lora_retriever.running.memory import ModelShape, beside, size_text
from lora_retriever.running.models import inspect_adapters, inspect_base
from lora_retriever.running.prediction import predicted_at
from lora_retriever.running.sweep import expand

EXACT = 1e-7
"""Rounding of float32, as a share of a norm: a smaller error of the base's own product is no yardstick."""
INEXACT = 8
"""Maximum error of a composed module, as a multiple of the rounding of the base's own product."""


def measured(profile: Profile) -> tuple[list[Finding], dict[str, Any]]:
    """Load the base and the adapters of a profile and measure on its device; the findings, and all figures.

    Raises:
        UserError: the model cannot be loaded, or a row could not be answered.
    """
    benchmark = open_benchmark(profile, None, uses_encoder=False)
    refuse_encoder_decoder(load_config(benchmark.base), "measurements")
    runs = len(expand(profile, methods_of(profile), []))
    found = measure(profile, benchmark, runs)
    headers = list(inspect_adapters(benchmark.adapters, None).headers.values())
    base = inspect_base(benchmark.base, profile.generation)
    shape, parameters = ModelShape.of_model(base.skeleton.config), base.skeleton.num_parameters()
    mixing = profile.model_copy(update={"retrieval": profile.retrieval.model_copy(update={"k": K})})
    rows = min(found.rows, profile.generation.rows_that_fit(found.longest))
    used = predicted_at(mixing, len(headers), headers, shape, parameters, found.longest, rows)
    predicted = used.total + sum(beside(used, shape, profile.torch_device, encoder=0).values())
    figures = {**found.as_dict(), "predicted_bytes": predicted}
    return list(_findings_of(found, predicted, runs, len(benchmark.rows))), figures


def _findings_of(found: Measured, predicted: int, runs: int, rows: int) -> Iterator[Finding]:
    yield Finding("ok", f"measured on {found.device} in {found.dtype}, with {found.rows} rows and mixtures of {K}")
    worst = max(found.modules, key=lambda error: error.composed / max(error.base, EXACT))
    exact = worst.composed <= INEXACT * max(worst.base, EXACT)
    yield Finding(
        "ok" if exact else "problem",
        f"exactness: outputs of {worst.module} ({worst.mode}) differ by {worst.composed:.1e} of their size from "
        f"products of dense float64 matrices; the base alone differs by {worst.base:.1e} there",
    )
    yield Finding(
        "ok" if not found.differing else "warning",
        f"batches: {len(found.differing)} of {found.alone} rows get another answer when each row is answered alone",
    )
    yield Finding(
        "ok",
        f"speed: {found.read_tokens_per_second:.0f} prompt tokens, {found.decoded_tokens_per_second:.0f} new tokens "
        f"and {found.rows_per_second:.2f} whole rows a second",
    )
    if found.peak_bytes is not None:
        yield Finding(
            "ok",
            f"peak memory: {size_text(found.peak_bytes)} were used, and {size_text(predicted)} were predicted for "
            "these rows; neither counts the encoder",
        )
    yield Finding(
        "ok",
        f"expected time: about {found.run_seconds / 60:.1f} minutes for {runs} runs of {rows} rows, if every row takes "
        "as long as these; loading, encoding, learning, probing and gates take more time",
    )
