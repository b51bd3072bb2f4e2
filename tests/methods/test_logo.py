"""LoGo: its signals equal dense matrices on the plain base, its weights are the signals, and it probes once."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing_cases import signals_by_loops
from rich.console import Console
from routing_cases import ROWS, model_with_pool

from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import load_generator
from lora_retriever.methods import find_methods
from lora_retriever.methods.context import Context, Resources
from lora_retriever.methods.logo import LoGo, strongest
from lora_retriever.methods.parts import probing
from lora_retriever.methods.parts.probing import Probe, probe
from peft_composition import AdapterMemoryError, ComposableModel


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are probed, in their order."""
    sizes, read = [], probing.read

    def watched(generator: Any, gate: Any, prompts: Any, names: Any) -> Any:
        sizes.append(len(prompts))
        return read(generator, gate, prompts, names)

    monkeypatch.setattr(probing, "read", watched)
    return sizes


def in_batches_of(size: int, context: Context) -> Context:
    """The context with a generator that answers this number of rows at once."""
    old = context._resources
    settings = old.generator.settings.model_copy(update={"batch_size": size})
    generator = Generator(old.generator.model, old.generator.tokenizer, settings)
    resources = Resources(old.profile, old.benchmark, old.results, old.console, lambda: generator)
    return Context(resources, old.profile, context._declared)


@pytest.mark.slow
def test_signals_are_those_of_dense_matrices(context_of: Any, benchmark: Benchmark, generator: Generator) -> None:
    context = context_of(rows=benchmark.rows[:5])
    assert len({len(row.inputs) for row in context.rows}) > 1, "rows are to be padded"
    actual, expected = probe(context), signals_by_loops(context, generator)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(actual, name), values.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "name"), [("norm", "norm"), ("entropy", "certainty")])
@pytest.mark.parametrize("masked", [False, True])
def test_the_strongest_adapters_are_kept_with_their_signals_as_weights(
    context_of: Any, benchmark: Benchmark, generator: Generator, signal: Any, name: str, masked: bool
) -> None:
    context = context_of(masked=masked, rows=benchmark.rows[:4])
    signals = signals_by_loops(context, generator)[name]  # [rows, adapters]
    for row, composition, values in zip(context.rows, LoGo(signal, 4).route(context), signals.tolist(), strict=True):
        offered = {n: v for n, v in zip(context.names, values, strict=True) if not (masked and n == row.task)}
        best = sorted(offered, key=lambda n: -offered[n])[:4]
        assert list(composition.adapters) == best
        total = sum(offered[n] for n in best)
        assert list(composition.weights.values()) == pytest.approx([offered[n] / total for n in best], rel=1e-4)


@pytest.mark.slow
def test_a_pool_smaller_than_top_k_is_used_whole(context_of: Any, benchmark: Benchmark) -> None:
    context = context_of(masked=True, rows=benchmark.rows[:2])
    for row, composition in zip(context.rows, LoGo().route(context), strict=True):
        assert set(composition.adapters) == set(context.names) - {row.task}


@pytest.mark.slow
def test_a_route_does_not_depend_on_the_batch(
    context_of: Any, benchmark: Benchmark, tmp_path: Path, batches: list[int]
) -> None:
    one, many = (
        probe(in_batches_of(size, context_of(rows=benchmark.rows[:7], results=tmp_path / str(size)))) for size in (1, 7)
    )
    assert batches == [*[1] * 7, 7]
    for name in ("norm", "certainty", "share"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_prompts_are_read_once_for_all_methods_that_probe(
    context_of: Any, benchmark: Benchmark, batches: list[int]
) -> None:
    """Masked and unmarked runs of LoGo and `nearest_weights` share the signals.

    Rows with equal inputs share them, too.
    """
    rows = [*benchmark.rows[:3], benchmark.rows[1].model_copy(update={"id": 99})]
    context = context_of(rows=rows)
    routes = {method.name: method.router.route(context) for method in find_methods(["logo", "nearest_weights"])}
    assert batches == [3]
    assert all(route[1] == route[3] for route in routes.values())
    assert LoGo().route(context_of(rows=rows)) == routes["logo"]
    find_methods(["nearest_weights_ood"])[0].router.route(context_of(masked=True, rows=rows))
    assert batches == [3]


@pytest.mark.slow
def test_seeds_share_what_was_probed(context_of: Any, benchmark: Benchmark, batches: list[int]) -> None:
    """Nothing is drawn, so a sweep over seeds reads the prompts once."""
    first, second = (probe(context_of(rows=benchmark.rows[:3], seed=seed)) for seed in (0, 1))
    assert batches == [3]
    np.testing.assert_array_equal(first.share, second.share)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["read", "replace"])
def test_an_interrupted_pass_goes_on_to_the_same_signals(
    context_of: Any,
    benchmark: Benchmark,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[int],
    step: str,
) -> None:
    """The interruption comes while the third batch is read, or after its signals are written, before the renaming."""
    whole = probe(in_batches_of(2, context_of(rows=benchmark.rows[:6], results=tmp_path / "whole")))
    interrupted = in_batches_of(2, context_of(rows=benchmark.rows[:6], results=tmp_path / "interrupted"))
    module = {"read": probing, "replace": os}[step]
    done, calls = getattr(module, step), []

    def interrupting(*args: Any) -> Any:
        if step == "read" or Path(args[1]).name == probing.FILE:
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return done(*args)

    batches.clear()
    monkeypatch.setattr(module, step, interrupting)
    with pytest.raises(KeyboardInterrupt):
        probe(interrupted)
    read_once = {"read": [2, 2], "replace": [2, 2, 2]}[step]
    assert batches == read_once
    signals = probe(interrupted)
    assert batches == [*read_once, 2], "the two batches that were saved are not read again"
    for name in ("norm", "certainty", "share"):
        np.testing.assert_array_equal(getattr(signals, name), getattr(whole, name))


@pytest.mark.slow
def test_probing_leaves_the_base_as_it_is_and_shows_its_progress(context_of: Any, benchmark: Benchmark) -> None:
    shown = io.StringIO()
    context = context_of(rows=benchmark.rows[:3])
    context._resources.console = Console(file=shown, width=100, force_terminal=False)
    base = context.generator.model.base
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        probe(context)
        torch.testing.assert_close(base(input_ids=ids).logits, before, atol=0, rtol=0)
    assert "probing" in shown.getvalue() and "3/3" in shown.getvalue()


@pytest.mark.slow
def test_an_adapter_without_the_module_has_no_signal_there(tmp_path: Path) -> None:
    model, parts = model_with_pool(tmp_path)
    gate, names = Probe(), list(parts)
    with torch.no_grad(), model.composed(names, torch.ones(1, len(names)), gate=gate):
        model(input_ids=torch.tensor(ROWS[:1]))
    signals = gate.take(1)
    assert gate.module == "model.layers.1.self_attn.q_proj"
    for name in ("norm", "certainty"):
        assert ((signals[name][0] > 0) == torch.tensor([name != "other_targets" for name in gate.adapters])).all()
    assert (signals["share"] > 0).all()
    assert strongest({}, 3).adapters == (), "a row to which no adapter responds is the base's"


def test_the_last_block_counts_by_its_number_and_a_query_projection_before_others() -> None:
    blocks = [f"model.layers.{n}.self_attn.{p}_proj" for n in (9, 10, 2) for p in ("k", "q", "v")]
    assert max(blocks, key=probing._depth) == "model.layers.10.self_attn.q_proj"
    fused = [f"transformer.h.{n}.attn.c_attn" for n in (9, 11, 10)]
    assert max(fused, key=probing._depth) == "transformer.h.11.attn.c_attn"


@pytest.mark.slow
def test_numbers_that_overflow_are_reported(
    context_of: Any, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = probing.read
    monkeypatch.setattr(probing, "read", lambda *args: {n: v * np.nan for n, v in read(*args).items()})
    with pytest.raises(UserError, match=r"gives NaN or infinity for the input .* dtype"):
        probe(context_of(rows=benchmark.rows[:2]))


def test_a_pool_that_memory_does_not_hold_is_reported(
    context_of: Any, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def composed(*args: Any, **kwargs: Any) -> Iterator[None]:
        raise AdapterMemoryError("19 adapters are to be composed in one batch")
        yield

    monkeypatch.setattr(ComposableModel, "composed", composed)
    with pytest.raises(UserError, match=r"whole pool in memory at once; raise adapters\.memory .*: 19 adapters"):
        probe(context_of(rows=benchmark.rows[:2]))


@pytest.mark.slow
def test_a_pool_larger_than_adapters_memory_is_reported(context_of: Any, benchmark: Benchmark, tiny: Profile) -> None:
    room = 3 * (benchmark.adapters["people_qa"] / "adapter_model.safetensors").stat().st_size
    small = load_generator(replace(model_source(tiny, benchmark), adapter_memory=room))
    context = context_of(rows=benchmark.rows[:2])
    context._resources.generator = small
    with pytest.raises(UserError, match=r"raise adapters\.memory of the profile: 19 adapters are .* hold [0-9]\b"):
        probe(context)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.long
def test_a_batch_too_large_for_memory_is_halved_and_so_are_the_later_ones(
    context_of: Any, benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = benchmark.rows[:12]
    expected = probe(context_of(rows=rows, results=tmp_path / "undivided"))
    sizes = decoding_at_most(2, OUT_OF_MEMORY, monkeypatch)
    divided = probe(in_batches_of(7, context_of(rows=rows, results=tmp_path / "divided")))
    assert sizes == [7, 4, 2, 2, 3, 2, 1, 2, 2, 1]  # the second batch has five rows
    for name in ("norm", "certainty", "share"):
        np.testing.assert_allclose(getattr(divided, name), getattr(expected, name), rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_prompt_too_large_by_itself_is_reported_and_what_was_read_is_kept(
    context_of: Any, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(rows=benchmark.rows[:3])
    with monkeypatch.context() as patch:
        sizes = decoding_at_most(0, OUT_OF_MEMORY, patch)
        with pytest.raises(UserError, match=r"a prompt of \d+ tokens does not fit .* lower generation\.max_prompt_tok"):
            probe(context)
        assert sizes == [3, 2, 1]
    assert np.isfinite(probe(context).share).all()


@pytest.mark.slow
def test_another_error_is_not_taken_for_want_of_memory(
    context_of: Any, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding_at_most(0, RuntimeError("the device is lost"), monkeypatch)
    with pytest.raises(RuntimeError, match="the device is lost"):
        probe(context_of(rows=benchmark.rows[:3]))


def decoding_at_most(rows: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a probing pass of more than `rows` rows fail after reading.

    Returns the sizes of the batches that were tried.
    """
    read_prompts, sizes = probing.read_prompts, []

    def refusing(model: Any, prompts: Any, pad_id: int) -> None:
        sizes.append(len(prompts))
        read_prompts(model, prompts, pad_id)  # so that the gate has noted the prompts
        if len(prompts) > rows:
            raise error

    monkeypatch.setattr(probing, "read_prompts", refusing)
    return sizes


@pytest.mark.parametrize("options", [{"signal": "length"}, {"top_k": 0}, {"k": 3}])
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="method logo"):
        find_methods(["logo"], {"logo": options})
