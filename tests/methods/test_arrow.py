"""Arrow: the weights are the softmax over the nearest prototypes, against dense singular vectors and upstream PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import tiny_llama, write_adapter
from peft import ArrowConfig, create_arrow_model
from routing_cases import ROWS, gated_logits, looped_logits, model_with_pool, softmax_over_best
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_retriever.errors import UserError
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.methods import Composition, find_methods
from lora_retriever.methods.arrow import Arrow
from lora_retriever.methods.parts.everything import Everything
from lora_retriever.methods.spectr import SpectR
from peft_composition import ComposableModel, Offered, Tokens


def arrow_by_svd(top_k: int, temperature: float) -> Any:
    def weigh(candidates: Mapping[str, Tensor], x: Tensor) -> dict[str, float]:
        first = {name: torch.linalg.svd(update).Vh[0] for name, update in candidates.items()}  # [d_in] each
        return softmax_over_best({name: float((x @ v).abs()) for name, v in first.items()}, top_k, temperature)

    return weigh


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "temperature"), [(3, 1.0), (1, 1.0), (2, 0.3), (5, 2.0)])
def test_each_token_is_weighed_as_by_dense_singular_vectors(tmp_path: Path, top_k: int, temperature: float) -> None:
    """Ranks and scalings differ, one adapter has other modules, one row is offered less, and rows are padded."""
    model, parts = model_with_pool(tmp_path)
    names = list(parts)
    offered = torch.ones(len(ROWS), len(names))
    offered[1, names.index("rank6")] = offered[2, names.index("plain")] = 0
    actual = gated_logits(model, names, offered, Arrow(top_k, temperature))
    for row, expected_of in enumerate(offered.bool().tolist()):
        mine = [name for name, is_offered in zip(names, expected_of, strict=True) if is_offered]
        expected = looped_logits(model.base, parts, mine, arrow_by_svd(top_k, temperature), ROWS[row])
        torch.testing.assert_close(actual[row], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_a_row_that_is_offered_nothing_is_the_base(tmp_path: Path) -> None:
    model, parts = model_with_pool(tmp_path)
    offered = torch.ones(len(ROWS), len(parts))
    offered[1] = 0
    actual = gated_logits(model, list(parts), offered, Arrow())
    with torch.no_grad():
        expected = model.base(input_ids=torch.tensor(ROWS[1:2])).logits[0, -1]
    torch.testing.assert_close(actual[1], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_fewer_adapters_than_top_k_are_all_taken(tmp_path: Path) -> None:
    model, parts = model_with_pool(tmp_path)
    names, offered = list(parts), torch.ones(len(ROWS), len(parts))
    offered[:, 2:] = 0
    few, many = (gated_logits(model, names, offered, Arrow(top_k)) for top_k in (2, 20))
    torch.testing.assert_close(few, many, atol=0, rtol=0)


@pytest.mark.slow
def test_the_logits_are_those_of_upstream_peft(tmp_path: Path) -> None:
    """The singular values get a gap; without this gap, PEFT's 15 power iterations would not find the vector."""
    base = tiny_llama()
    folders = [write_adapter(tmp_path / f"adapter{i}", base, seed=i) for i in range(5)]
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensor[0] *= 6
        save_file(tensors, folder / "adapter_model.safetensors")
    ids = torch.tensor([ROWS[0], ROWS[0][::-1]])
    peft = create_arrow_model(
        deepcopy(base), [str(folder) for folder in folders], ArrowConfig(top_k=3, router_temperature=0.7, rng_seed=0)
    )
    model = ComposableModel(base)
    for folder in folders:
        model.load_adapter(folder, name=folder.name)
    with torch.no_grad():
        expected = peft.eval()(input_ids=ids).logits
        with model.composed(model.adapters, torch.ones(2, 5), gate=Arrow(top_k=3, temperature=0.7)):
            actual = model(input_ids=ids).logits
        assert (actual - base(input_ids=ids).logits).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(generator: Generator, benchmark: Any, context_of: Any) -> None:
    rows = benchmark.rows[:6]
    prompts = make_prompts([row.inputs for row in rows], generator.tokenizer, generator.settings)
    compositions = Everything().route(context_of(masked=True, rows=rows))
    together = generator.answer(prompts, compositions, "mixture", Arrow())
    alone = [generator.answer([p], [c], "mixture", Arrow())[0] for p, c in zip(prompts, compositions, strict=True)]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for row, answer in zip(rows, together, strict=True):
        assert answer.gate is not None
        used = answer.gate.weights
        assert used.get(row.task, 0) == 0
        assert sum(used.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_everything_offers_the_pool_and_gives_the_rows_own_no_weight_where_it_is_masked(context_of: Any) -> None:
    context, masked = context_of(), context_of(masked=True)
    everything = Composition.of(dict.fromkeys(context.names, 1.0))
    assert Everything().route(context) == [everything] * len(context.rows)
    for row, composition in zip(masked.rows, Everything().route(masked), strict=True):
        assert list(composition.weights) == masked.names
        assert composition.weights == {name: float(name != row.task) for name in masked.names}


@pytest.mark.slow
def test_small_batches_of_a_masked_run_share_what_is_prepared(
    generator: Generator, benchmark: Any, context_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    prepare = Arrow.prepare

    def noting(arrow: Arrow, offered: Offered) -> Tensor:
        prepared.append(offered.module)
        return prepare(arrow, offered)

    monkeypatch.setattr(Arrow, "prepare", noting)
    rows, arrow = benchmark.rows[:12:3], Arrow(temperature=0.9)
    assert len({row.task for row in rows}) > 1
    prompts = make_prompts([row.inputs for row in rows], generator.tokenizer, generator.settings)
    for prompt, composition in zip(prompts, Everything().route(context_of(masked=True, rows=rows)), strict=True):
        generator.answer([prompt], [composition], "mixture", arrow)
    assert len(prepared) == len(set(prepared)) > 0


def test_what_is_rounded_to_16_bit_is_weighed_in_float32() -> None:
    draw = torch.Generator().manual_seed(0)
    down, up, x = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((3, 4, 16), (3, 4, 9), (1, 5, 16)))
    offered = Offered("module", ("a", "b", "c"), down, up, torch.ones(3, dtype=torch.bool))
    tokens = Tokens(
        x=x, inner=torch.einsum("bnd,prd->bnpr", x, down), offered=torch.ones(1, 3, dtype=torch.bool), batch=1,
        real=torch.ones(1, 5, dtype=torch.bool), rows=torch.tensor([0]), first=True, memory={},
    )  # fmt: skip
    gates: list[Arrow | SpectR] = [Arrow(), SpectR(), SpectR(singular_values=True, temperature=9.0)]
    for gate in gates:
        prepared = gate.prepare(offered)
        weights = gate.weights(prepared, tokens)
        assert prepared.dtype == weights.dtype == torch.float32
        scores = torch.zeros(1, 5, 3, dtype=torch.float64)
        for p in range(3):
            a, b = down[p].double(), up[p].double().T
            values, directions = torch.linalg.svd(b @ a)[1:]
            for n in range(5):
                # The gate gets a rounded A x. The expected V^T x is therefore computed from the x in the row space of A
                # that has this A x.
                within = torch.linalg.pinv(a) @ tokens.inner[0, n, p].double()
                along = directions[:4] @ within
                if isinstance(gate, Arrow):
                    scores[0, n, p] = (directions[0] @ x[0, n].double()).abs()
                else:
                    scores[0, n, p] = (values[:4] * along if gate.singular_values else along).norm()
        torch.testing.assert_close(weights.double(), (scores / gate.temperature).softmax(dim=2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"k": 3}])
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="method arrow"):
        find_methods(["arrow"], {"arrow": options})
