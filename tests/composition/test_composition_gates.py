"""A gate weighs the adapters for every token; loops over rows, tokens and adapters give the same result."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from composition_cases import some_ids, tiny_llama, write_adapter
from gate_cases import (
    GATES,
    NAMES,
    OWN,
    PROMPTS,
    SETTINGS,
    Adapted,
    ByContent,
    Seeing,
    adapted_by,
    by_content,
    prompt_inputs,
)  # fmt: skip
from model_families import InDouble, left_padded
from torch import Tensor, nn
from transformers import DynamicCache

from peft_composition import AdapterMemoryError, ComposableModel, CompositionError, GateUsage, Offered, Tokens
from peft_composition.gates import KEPT_SETS, NOTED, SUMMED_AT_ONCE, PreparedGates, Tally, usage_of
from peft_composition.pairs import mixture_pair

NEW = 5
CLOSE = {"atol": 1e-10, "rtol": 0}


@pytest.fixture(scope="module", params=list(SETTINGS))
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Three adapters of ranks 4, 2 and 3. Each adapter has a module that another adapter lacks."""
    return adapted_by(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapted_by("llama", tmp_path_factory.mktemp("llama"))


# What a gate does


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("kind", list(GATES))
def test_every_token_is_composed_as_a_loop_over_rows_tokens_and_adapters_does(adapted, kind, mode):
    gate, plain = GATES[kind]
    bare = adapted.base(**prompt_inputs()).logits
    with torch.no_grad(), adapted.model.composed(NAMES, OWN, mode, gate), InDouble():
        logits = adapted.model(**prompt_inputs()).logits
    for row, ids in enumerate(PROMPTS):
        expected = adapted.alone(row, ids, mode, plain, len(ids))
        torch.testing.assert_close(logits[row, -len(ids) :], expected, **CLOSE)
        if OWN[row].any():
            assert (logits[row] - bare[row])[-len(ids) :].abs().max() > 0.05, "the adapters must be seen in the logits"


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(GATES))
def test_rows_may_be_read_in_parts_and_leave(llama, kind):
    gate, plain = GATES[kind]
    tails: list[list[int]] = [[] for _ in PROMPTS]
    found: list[tuple[int, list[int], Tensor]] = []  # a row, its tokens, and the logits after the last of them

    def note(logits: Tensor, rows: Sequence[int]) -> None:
        found.extend((row, PROMPTS[row] + tails[row], logits[place, -1]) for place, row in enumerate(rows))

    with torch.no_grad(), llama.model.composed(NAMES, OWN, gate=gate), InDouble():
        caches = []
        for part in (slice(0, 2), slice(2, 4)):
            caches.append(DynamicCache(config=llama.base.config))
            with llama.model.only_rows(part):
                note(llama.model(**prompt_inputs(part), past_key_values=caches[-1]).logits, range(4)[part])
        # The second part goes on alone, in the other order. Then one row of this part goes on alone.
        cache, rows, staying = caches[1], [3, 2], [3, 2]
        mask = prompt_inputs(slice(2, 4))["attention_mask"][[1, 0]]
        cache.batch_select_indices(torch.tensor([1, 0]))
        for token in (7, 8, 9):
            llama.model.keep_rows(torch.tensor(staying))
            for row in rows:
                tails[row].append(token + row)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            inputs = {"input_ids": torch.tensor([[token + row] for row in rows]), "attention_mask": mask}
            inputs["position_ids"] = mask.sum(dim=1, keepdim=True) - 1
            note(llama.model(**inputs, past_key_values=cache).logits, rows)
            staying = [0]
            if token == 7:
                rows, mask = rows[:1], mask[:1]
                cache.batch_select_indices(torch.tensor([0]))
    assert len(found) == 4 + 2 + 1 + 1
    for row, ids, logits in found:
        expected = llama.alone(row, ids, "mixture", plain, len(PROMPTS[row]))
        torch.testing.assert_close(logits, expected[-1], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(GATES))
def test_generation_is_what_full_passes_without_a_cache_say(adapted, kind):
    gate, plain = GATES[kind]
    ids, mask = left_padded(PROMPTS)
    with adapted.model.composed(NAMES, OWN, "fusion", gate), InDouble():
        for _ in range(2):  # the gate's memory of the first generation must not count in the second
            answers = adapted.model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
            ids, mask, answers = ids.flip(0), mask.flip(0), answers[:, -NEW:]
    # The second generation has the prompts in reverse order: row i has prompt 3 − i and the weights of row i.
    for row, own in enumerate(range(4)):
        prompt = list(PROMPTS[3 - row])
        model, answer = adapted.plain(OWN[own], "fusion", plain, len(prompt)), list(prompt)
        with torch.no_grad(), InDouble():
            for _ in range(NEW):
                answer.append(int(model(input_ids=torch.tensor([answer])).logits[0, -1].argmax()))
        assert answers[row].tolist() == answer[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beams_are_weighed_token_by_token_too(adapted, options):
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    ids = torch.tensor([prompt[:1] * 3 for prompt in PROMPTS])
    with adapted.model.composed(NAMES, OWN, gate=ByContent()), InDouble():
        together = adapted.model.generate(ids, **options)
    with InDouble():
        expected = [
            adapted.plain(own, "mixture", by_content).generate(ids[row : row + 1], **options)
            for row, own in enumerate(OWN)
        ]
    assert torch.equal(together, torch.cat(expected))


# Arguments and memory of a gate


def test_rows_remember_beside_the_rows_that_remembered_before():
    """Rows 2 and 0 of a batch of 4 are read, then row 1, in another dtype."""
    memory: dict[str, Tensor] = {}

    def tokens(*rows: int) -> Tokens:
        nothing = torch.zeros(len(rows), 1, 1)
        return Tokens(nothing, nothing, nothing, nothing, torch.tensor(rows), True, memory, batch=4)

    tokens(2, 0).remember("mean", torch.tensor([[2.0, 2.5], [0.5, 0.25]]))
    tokens(1).remember("mean", torch.tensor([[1.0, 1.5]], dtype=torch.float64))
    tokens(3).remember("other", torch.tensor([7.0]))
    assert tokens(0, 1, 2, 3).recall("mean").tolist() == [[0.5, 0.25], [1.0, 1.5], [2.0, 2.5], [0.0, 0.0]]
    assert tokens(3).recall("other").tolist() == [7.0]


@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_a_gate_that_weighs_nothing_leaves_the_logits_of_the_base_to_the_bit(model, mode):
    ids, names = some_ids(3), ["plain", "rank2", "head"]
    gate = Seeing()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with model.composed(names, torch.ones(3, 3), mode, gate):
            assert torch.equal(model(input_ids=ids).logits, expected)
    assert gate.seen


def test_a_gate_sees_the_adapters_in_loading_order_and_what_each_row_is_offered(llama):
    gate = Seeing()
    with torch.no_grad(), llama.model.composed(NAMES[::-1], OWN.flip(1), gate=gate), InDouble():
        llama.model(**prompt_inputs())
    offers = {offered.module: offered for offered in gate.offers}
    assert offers.keys() == {name for part in llama.parts for name in part}
    for name, offered in offers.items():
        assert offered.adapters == tuple(NAMES)
        assert offered.targets.tolist() == [name in part for part in llama.parts]
        rank = max(part[name][0].shape[0] for part in llama.parts if name in part)
        assert offered.down.shape[1] == offered.up.shape[1] == rank
        for place, part in enumerate(llama.parts):
            a, b, scaling = part.get(name, (torch.zeros(0, offered.down.shape[2]), torch.zeros(1, 0), 1.0))
            torch.testing.assert_close(offered.down[place, : len(a)], a.to(offered.down.dtype))
            torch.testing.assert_close(
                offered.up[place, : len(a)], (scaling * b.T).expand(-1, offered.up.shape[2]).to(offered.up.dtype)
            )
            assert not offered.down[place, len(a) :].any()
    for tokens, offered in zip(gate.seen, sorted_by_call(llama, offers), strict=True):
        assert torch.equal(tokens.offered, OWN.ne(0) & offered.targets)
        torch.testing.assert_close(tokens.inner, torch.einsum("bnd,prd->bnpr", tokens.x, offered.down), **CLOSE)
        assert (tokens.rows.tolist(), tokens.batch, tokens.first, tokens.memory) == ([0, 1, 2, 3], 4, True, {})


def sorted_by_call(adapted: Adapted, offers: dict[str, Offered]) -> list[Offered]:
    """The offers of the modules in the order of the calls in a forward pass, which is the order of the definitions."""
    return [offers[name] for name, _ in adapted.base.named_modules() if name in offers]


def test_what_is_prepared_is_kept_until_an_adapter_goes_or_the_base_is_cast(folders, tmp_path):
    model = ComposableModel(tiny_llama())
    for name in ("plain", "alike", "rank2"):
        model.load_adapter(folders[name], name)
    gate, modules = Seeing(), 4

    def prepared(names: Sequence[str], gate: Any = gate) -> int:
        before = len(gate.offers)
        with model.composed(names, torch.ones(1, len(names)), gate=gate):
            return len(gate.offers) - before

    assert prepared(["plain", "alike"]) == modules
    assert prepared(["alike", "plain"]) == 0, "the order in which they are named is nothing to the adapters"
    assert prepared(["plain", "rank2"]) == modules
    assert prepared(["plain", "alike"], Seeing()) == modules, "another gate prepares for itself"
    model.unload_adapter("rank2")
    assert prepared(["plain", "alike"]) == 0
    model.load_adapter(folders["rslora"], "rank2")
    assert prepared(["plain", "rank2"]) == modules, "the name stands for another adapter"
    model.base.double()
    assert prepared(["plain", "alike"]) == modules
    assert gate.offers[-1].down.dtype == torch.float64
    others = [Seeing() for _ in range(KEPT_SETS)]
    for other in others:
        prepared(["plain"], other)
    assert prepared(["plain", "alike"]) == modules, "only a few sets are kept"


@pytest.mark.slow
def test_a_gate_is_known_by_value_where_it_has_one_and_else_no_longer_than_it_lives(model, monkeypatch):
    def compose(gate: Any) -> None:
        with model.composed(["plain", "alike"], torch.ones(1, 2), gate=gate):
            pass

    gate, other = Seeing(), Seeing()
    gone = weakref.ref(gate)
    compose(gate)
    del gate
    gc.collect()
    assert gone() is None
    compose(other)
    assert len(model._prepared._sets) == 1, "what it prepared went, too"
    prepared: list[str] = []
    monkeypatch.setattr(ByContent, "prepare", lambda gate, offered: prepared.append(offered.module))
    for _ in range(2):
        compose(ByContent())
    assert len(prepared) == len(set(prepared)) == 4


class State:
    """The prepared state of a gate. A weak reference shows whether the state is gone, which is impossible with None."""


class Preparing(Seeing):
    """Prepares a `State`, and holds a weak reference to the last `State`."""

    def prepare(self, offered: Offered) -> Any:
        super().prepare(offered)
        state = State()
        self.last = weakref.ref(state)
        return state


@pytest.mark.slow
def test_the_sets_that_were_used_last_are_kept_and_those_of_gates_that_are_gone_are_not():
    offered = Offered("module", ("one",), torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.tensor([True]))
    kept, gates = PreparedGates(), [Preparing() for _ in range(KEPT_SETS + 1)]
    for place in (*range(KEPT_SETS), 0, KEPT_SETS, 0, 1):
        kept.of(gates[place], offered)
    assert len(gates[0].offers) == 1, "used again before the store was full"
    assert len(gates[1].offers) == 2, "used longest ago when the last one came"
    last = gates[1].last
    assert last() is not None
    del gates[1]
    gc.collect()
    kept.of(Preparing(), offered)
    assert last() is None


def test_a_masked_adapter_is_offered_too_so_that_batches_share_what_is_prepared(model):
    gate = Seeing()
    with model.composed(["plain", "alike"], [[1.0, 0.0]], gate=gate):
        assert {offered.adapters for offered in gate.offers} == {("plain", "alike")}


@pytest.mark.slow
def test_gated_adapters_must_fit_in_memory_together(folders, base):
    adapter_bytes = 2 * 4 * (16 + 16 + 16 + 8) * 4  # rank 4 on q_proj and v_proj of two layers, float32
    few, everything = ComposableModel(tiny_llama(), adapter_memory=3 * adapter_bytes), ComposableModel(tiny_llama())
    for model in (few, everything):
        for name in ("plain", "alike", "alpha32"):
            model.load_adapter(folders[name], name)
    gate, ids = ByContent(), some_ids(2)
    with pytest.raises(AdapterMemoryError, match="3 adapters are to be composed"):
        few.composed(few.adapters, torch.ones(2, 3), gate=gate).__enter__()
    for names in (["plain", "alike"], ["alpha32", "alike"], ["plain", "alike"]):
        logits = []
        for model in (few, everything):
            with torch.no_grad(), model.composed(names, torch.ones(2, 2), gate=gate):
                logits.append(model(input_ids=ids).logits)
        assert torch.equal(*logits)


def test_only_a_mixture_or_a_fusion_can_be_gated(model):
    with pytest.raises(CompositionError, match=r"a gate weighs a mixture or a fusion.*Ties"):
        model.composed(["plain"], [[1.0]], "ties", ByContent()).__enter__()
    with model.composed(["plain"], [[1.0]], mixture_pair, ByContent()):
        pass
    assert not any("forward" in vars(module) for module in model.base.modules())


def test_a_gate_that_does_not_weigh_every_token_is_refused(model):
    refused = pytest.raises(CompositionError, match=r"Constant\(dimensions=2\) .* shape \[7, 2\]; .*\[2, 7, 2\]")
    with model.composed(["plain", "alike"], torch.ones(2, 2), gate=Constant(2)), refused:
        model(input_ids=some_ids(2))


# Usage


@pytest.mark.slow
def test_usage_is_the_mean_over_real_tokens_and_modules_and_rows_that_left_keep_theirs(llama):
    following = torch.tensor([[5], [6]])
    cache, inputs = DynamicCache(config=llama.base.config), prompt_inputs()
    mask = torch.cat([inputs["attention_mask"][[3, 1]], torch.ones(2, 1, dtype=torch.int64)], dim=1)
    positions = mask.sum(dim=1, keepdim=True) - 1
    with torch.no_grad(), llama.model.composed(NAMES[::-1], OWN.flip(1), gate=ByContent()):
        with InDouble():
            llama.model(**inputs, past_key_values=cache)
            llama.model.keep_rows(torch.tensor([3, 1]))
            cache.batch_select_indices(torch.tensor([3, 1]))
            llama.model(input_ids=following, attention_mask=mask, position_ids=positions, past_key_values=cache)
        usage: GateUsage = llama.model.gate_usage()
    for row, prompt in enumerate(PROMPTS):
        seen: list[Tensor] = []
        llama.alone(row, prompt + {3: [5], 1: [6]}.get(row, []), "mixture", by_content, seen=seen)
        weights = torch.cat(seen)  # [modules * tokens, adapters]
        torch.testing.assert_close(usage.weights[row], weights.mean(dim=0).flip(0).float())
        entropies = [
            -sum(w * torch.log(w) for w in (token.abs() / token.abs().sum()) if w > 0)
            for token in weights
            if token.any()
        ]
        expected = sum(entropies) / len(entropies) if entropies else 0.0
        assert float(usage.entropy[row]) == pytest.approx(float(expected), abs=1e-6)
    assert (usage.weights.shape, usage.weights.dtype, usage.entropy.shape) == ((4, 3), torch.float32, (4,))


def test_usage_by_hand():
    """Two modules, two adapters and three rows. The rows have one token, no token (only padding) and two tokens."""
    tallies = [Tally.empty(3, 2, torch.zeros(())) for _ in range(2)]
    real = torch.tensor([[False, True], [False, False], [True, True]])
    weights = torch.tensor([[[9.0, 9.0], [0.5, 0.5]], [[9.0, 9.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 0.0]]])
    tallies[0].note(weights, real, torch.arange(3))
    usage = usage_of(tallies[:1], [1, 0])
    torch.testing.assert_close(usage.weights, torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(usage.entropy, torch.tensor([math.log(2), 0.0, 0.0]))
    tallies[1].note(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[True]]), torch.tensor([2]))
    usage = usage_of(tallies, [0, 1])
    torch.testing.assert_close(usage.weights, torch.tensor([[0.5, 0.5], [0.0, 0.0], [1.75 / 3, 0.25 / 3]]))
    assert float(usage.entropy[2]) == pytest.approx((2 * math.log(2) - 0.75 * math.log(3)) / 2)


@pytest.mark.slow
def test_a_tally_sums_the_calls_of_all_modules():
    """Calls with one and with several tokens, more calls than a tally holds, and a call that is summed at once."""
    draw = torch.Generator().manual_seed(0)
    tally, expected = Tally.empty(4, 3, torch.zeros((), dtype=torch.float64)), torch.zeros(4, 6, dtype=torch.float64)
    for n in [*[1] * (NOTED + 3), 2, 2, 1, SUMMED_AT_ONCE, 2]:
        rows = torch.randperm(4, generator=draw)[:2]
        weights = torch.rand(2, n, 3, generator=draw, dtype=torch.float64) - 0.25
        weights[0, 0] = 0
        real = torch.rand(2, n, generator=draw) < 0.75
        tally.note(weights, real, rows)
        for row, own, there in zip(rows, weights, real, strict=True):
            kept = own[there]  # [tokens, 3]
            weighed = kept[kept.abs().sum(dim=1) > 0]
            entropy = torch.distributions.Categorical(probs=weighed.abs()).entropy() if len(weighed) else weighed
            expected[row] += torch.tensor([*kept.sum(dim=0), entropy.sum(), len(weighed), len(kept)])
    torch.testing.assert_close(tally.sums, expected)


def test_usage_is_asked_for_within_a_gated_composition(model):
    for asked in (model.composed(["plain"], [[1.0]]), model.composed(["plain"], [[1.0]], gate=ByContent())):
        with asked:
            pass
        with pytest.raises(CompositionError, match="no composition with a gate is active"):
            model.gate_usage()


# Training


class Learned(nn.Module):
    """A softmax of the first two numbers of x A^T, multiplied with one matrix for all modules."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def prepare(self, offered: Offered) -> None:
        return None

    def weights(self, prepared: None, tokens: Tokens) -> Tensor:
        scores = tokens.inner[..., :2] @ self.matrix  # [batch, n, P]
        return scores.masked_fill(~tokens.offered[:, None], -30.0).softmax(dim=2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_what_a_gate_learns_from_gets_the_gradient_of_the_loops(llama, mode):
    gate, ids = Learned(), some_ids(4)
    with InDouble():
        with llama.model.composed(NAMES, OWN, mode, gate):
            llama.model(input_ids=ids).logits.square().sum().backward()
            usage = llama.model.gate_usage()
        matrix = gate.matrix.detach().clone().requires_grad_()

        def learned(x: Tensor, downs: Sequence[Tensor], prompt: int) -> Tensor:
            return torch.stack([torch.stack([(a @ t)[:2] @ matrix for a in downs]).softmax(dim=0) for t in x])

        for row in range(4):
            llama.plain(OWN[row], mode, learned)(input_ids=ids[row : row + 1]).logits.square().sum().backward()
    assert matrix.grad is not None and matrix.grad.abs().max() > 1
    torch.testing.assert_close(gate.matrix.grad, matrix.grad, atol=0, rtol=1e-6)
    assert not usage.weights.any(), "no sums are kept of passes with gradients"
    llama.base.zero_grad()


def test_a_gate_prepared_in_inference_mode_can_be_trained_after(model):
    gate = Learned().float()
    with torch.inference_mode(), model.composed(["plain", "alike"], torch.ones(2, 2), gate=gate):
        model(input_ids=some_ids(2))
    with model.composed(["plain", "alike"], torch.ones(2, 2), gate=gate):
        model(input_ids=some_ids(2)).logits.sum().backward()
    assert gate.matrix.grad is not None
    model.base.zero_grad()


@dataclass(frozen=True)
class Constant:
    """Gives every adapter weight ½, in a tensor of this number of dimensions."""

    dimensions: int = 3

    def prepare(self, offered: Offered) -> None:
        return None

    def weights(self, prepared: None, tokens: Tokens) -> Tensor:
        return torch.full(tokens.inner.shape[:3][-self.dimensions :], 0.5)


@pytest.mark.long
def test_a_compiled_base_is_gated_as_an_uncompiled_one(tmp_path):
    folder, logits = write_adapter(tmp_path, tiny_llama(layers=1), 1, target_modules=["v_proj"]), []
    for compiled in (False, True):
        base = tiny_llama(layers=1)
        if compiled:
            base.compile(backend="eager")
        model = ComposableModel(base)
        model.load_adapter(folder, "small")
        with torch.no_grad(), model.composed(["small"], [[1.0], [0.5]], gate=Constant()):
            logits.append(model(input_ids=some_ids(2)).logits)
    torch.compiler.reset()
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
