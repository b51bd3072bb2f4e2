"""What `lora-retriever doctor --measure` says of the figures that were measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.loading import load_config
from lora_retriever.methods import methods_of
from lora_retriever.running.doctor import BYTES, GIB, Finding, adapted_by, predicted_for
from lora_retriever.running.measuring import K, Measured, measure
from lora_retriever.running.memory import ModelShape, predicted_memory
from lora_retriever.running.models import inspect_adapters, inspect_base
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
    headers = inspect_adapters(benchmark.adapters, None).headers
    base = inspect_base(benchmark.base, profile.generation)
    shape = ModelShape.of_model(base.skeleton.config)
    predicted = predicted_for(
        profile, len(benchmark.adapters), list(headers.values()), shape, base.skeleton.num_parameters()
    )
    rank, targets = adapted_by(list(headers.values()), shape)
    of_rows = predicted_memory(
        shape,
        base.skeleton.num_parameters(),
        value_bytes=BYTES[profile.dtype],
        rows=min(found.rows, profile.generation.rows_that_fit(found.longest)),
        length=found.longest,
        new_tokens=profile.generation.max_new_tokens,
        adapters=len(headers),
        rank=rank,
        targets=targets,
        pair_rank=K * rank,
    )
    figures = {**found.as_dict(), "predicted_bytes": of_rows.total, "predicted_bytes_at_most": predicted.total}
    return list(_findings_of(found, of_rows.total, predicted.total, runs, len(benchmark.rows))), figures


def _findings_of(found: Measured, predicted: int, at_most: int, runs: int, rows: int) -> Iterator[Finding]:
    yield Finding("ok", f"measured: on {found.device}, {found.dtype}")
    worst = max(found.modules, key=lambda error: error.composed / max(error.base, EXACT))
    exact = worst.composed <= INEXACT * max(worst.base, EXACT)
    yield Finding(
        "ok" if exact else "problem",
        f"composing: {worst.module} ({worst.mode}) is {worst.composed:.1e} of its norm away from dense float64 "
        f"matrices; the base's own product is {worst.base:.1e} away",
    )
    yield Finding(
        "ok" if not found.differing else "warning",
        f"answers: {len(found.differing)} of {found.rows} are others when each row is answered alone",
    )
    yield Finding(
        "ok",
        f"speed: {found.read_tokens_per_second:.0f} prompt tokens a second, {found.decoded_tokens_per_second:.0f} new "
        f"tokens a second, {found.rows_per_second:.2f} rows a second",
    )
    if found.peak_bytes is not None:
        yield Finding(
            "ok",
            f"memory: {found.peak_bytes / GIB:.2f} GiB at the peak of {found.rows} rows; "
            f"{predicted / GIB:.2f} GiB are predicted for these rows, {at_most / GIB:.2f} GiB for the largest batch",
        )
    yield Finding(
        "ok",
        f"time: about {found.run_seconds / 60:.1f} minutes for {runs} runs of {rows} rows, without loading and "
        "encoding; methods with a gate, and methods that learn or probe, take longer",
    )
