"""MoE over adapters: the formula token by token, the experts, and the training that it shares with SMEAR."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import tiny_llama, write_adapter
from expert_cases import EXPERTS, Adapter, Case, greedy, padded, softmax, until
from loop_cases import continued_together
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot
from transformers import LlamaForCausalLM

from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import load_generator
from lora_retriever.methods.context import Context
from lora_retriever.methods.moe import METHODS, MoE, TokenGate, token_weights
from lora_retriever.methods.parts import gate_training as learning
from lora_retriever.methods.parts.experts import Experts, experts_of
from lora_retriever.methods.parts.gate_training import GateInTraining, Matrices
from peft_composition import ComposableModel, CompositionError

ContextOf = Callable[..., Context]

PROMPTS = [[5, 9, 31, 17, 22, 40, 8], [11, 3], [7, 7, 29, 14, 2, 33], [21, 12, 45, 6, 30, 19, 4, 38]]
OFFERED = [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
CHEAP = MoE(samples=1, epochs=2)  # 19 samples, 5 steps an epoch


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("experts"))


def mixture_of_experts(x: Tensor, matrix: Tensor, experts: list[Adapter | None], top_k: int | None) -> Tensor:
    """Σ_e w_e s_e B_e A_e x, one token after the other."""
    outputs = []
    for token in x:
        scores = {e: float(matrix[e] @ token) for e, expert in enumerate(experts) if expert is not None}
        kept = sorted(scores, key=lambda e: -scores[e])[:top_k]
        weights = softmax({e: scores[e] for e in kept})
        output = torch.zeros(1, dtype=torch.float64)
        for e, weight in weights.items():
            down, up, scaling = experts[e]
            output = output + weight * scaling * (up @ (down @ token))
        outputs.append(output)
    return torch.stack(torch.broadcast_tensors(*outputs))


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [None, 1, 3, 9])
@torch.no_grad()
def test_a_padded_batch_has_the_outputs_of_every_row_alone_and_token_by_token(case: Case, top_k: int | None) -> None:
    with case.model.composed(list(EXPERTS), OFFERED, "mixture", gate=TokenGate(case.matrices, top_k)):
        logits = case.model(**padded(PROMPTS)).logits
    for row, (prompt, offered) in enumerate(zip(PROMPTS, OFFERED, strict=True)):
        dense = case.dense(offered, partial(mixture_of_experts, top_k=top_k))
        expected = dense(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits[row, -len(prompt) :], expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_experts_keep_their_own_scores_when_only_some_are_offered(case: Case) -> None:
    ids = torch.tensor(PROMPTS[:1])
    with case.model.composed(["patterns", "rank2"], [[1.0, 1.0]], "mixture", gate=TokenGate(case.matrices)):
        logits = case.model(input_ids=ids).logits
    dense = case.dense([0.0, 1.0, 0.0, 1.0], partial(mixture_of_experts, top_k=None))
    torch.testing.assert_close(logits, dense(input_ids=ids).logits, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [None, 1])
@torch.no_grad()
def test_decoding_with_rows_that_end_is_what_full_passes_say(case: Case, top_k: int | None) -> None:
    models = [case.dense(offered, partial(mixture_of_experts, top_k=top_k)) for offered in OFFERED]
    answers = [greedy(model, prompt, 8) for model, prompt in zip(models, PROMPTS, strict=True)]
    end = answers[0][2]
    compositions = [Composition(dict(zip(EXPERTS, offered, strict=True))) for offered in OFFERED]
    found = continued_together(case.model, PROMPTS, [end], 8, compositions, "mixture", TokenGate(case.matrices, top_k))
    assert found == [until(answer, end) for answer in answers]


def test_an_adapter_that_is_no_expert_is_refused(case: Case) -> None:
    gate = TokenGate(Matrices("fewer", tuple(EXPERTS)[:3], case.by_module))
    with (
        pytest.raises(CompositionError, match="cannot weigh adapter 'patterns'; it was trained to weigh: plain, rank2"),
        case.model.composed(list(EXPERTS), OFFERED, "mixture", gate=gate),
    ):
        pass


@pytest.mark.slow
def test_a_planted_expert_is_found_for_every_token(tmp_path: Path) -> None:
    """A teacher gives every token a planted expert.

    A gate that is trained on the teacher's outputs chooses the same expert.
    """
    base = tiny_llama(layers=1)
    base.requires_grad_(False)
    model = ComposableModel(base)
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        model.load_adapter(write_adapter(tmp_path / name, base, seed, target_modules=["v_proj"]), name=name)
    vocabulary = torch.arange(1, 13)  # [12]
    planted = vocabulary % 3  # the expert of each word
    draw = torch.Generator().manual_seed(0)

    class Teacher:
        def __init__(self, ids: Tensor) -> None:
            self.ids = ids

        def prepare(self, offered: object) -> None:
            return None

        def weights(self, prepared: None, tokens: object) -> Tensor:
            return one_hot(self.ids % 3, 3).float()  # [batch, n, 3]

    gate = GateInTraining(token_weights)
    ones = torch.ones(8, 3)
    with model.composed(names, ones, "mixture", gate=gate):
        pass
    (matrix,) = gate.parameters.values()
    optimizer = torch.optim.AdamW([matrix], lr=0.1)
    for _ in range(60):
        ids = torch.randint(1, 13, (8, 6), generator=draw)  # [8, 6]
        with torch.no_grad(), model.composed(names, ones, "mixture", gate=Teacher(ids)):
            wanted = model(input_ids=ids).logits  # [8, 6, vocabulary]
        gate.prompts = torch.ones_like(ids, dtype=torch.bool)
        with model.composed(names, ones, "mixture", gate=gate):
            mse_loss(model(input_ids=ids).logits, wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    layer = base.model.layers[0]
    x = layer.input_layernorm(base.model.embed_tokens(vocabulary))  # [12, d]: the input of v_proj for each token
    assert (x @ matrix.T).argmax(dim=1).tolist() == planted.tolist()


@pytest.mark.slow
def test_one_expert_is_drawn_from_every_domain(context_of: ContextOf) -> None:
    context = context_of()
    domains = {entry.model_name: entry.domain for entry in context.pool}
    drawn = [experts_of(context.pool, seed) for seed in range(20)]
    assert all(sorted(domains[name] for name in experts) == sorted(set(domains.values())) for experts in drawn)
    assert {name for experts in drawn for name in experts} == set(domains)
    assert experts_of(context.pool, 3) == drawn[3]


def test_every_row_is_offered_all_experts_but_its_own_where_that_is_masked(context_of: ContextOf) -> None:
    context = context_of()
    experts = experts_of(context.pool, context.seed)
    for composition in Experts().route(context):
        assert composition.adapters == experts
        assert set(composition.weights.values()) == {1.0}
    for row, composition in zip(context.rows, Experts().route(context_of(masked=True)), strict=True):
        assert composition.adapters == tuple(name for name in experts if name != row.task)


@pytest.mark.slow
def test_variants_share_one_training_that_lowers_the_loss_and_leaves_the_base(
    context_of: ContextOf, generator: Generator, tmp_path: Path
) -> None:
    context, base = context_of(), generator.model.base
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in base.named_parameters()}
    options = {"samples": 1, "epochs": 3}
    gate = MoE(**options).fit(context)
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    (file,) = tmp_path.glob("learned/moe-*/record.json")
    record = json.loads(file.read_text())
    assert record["examples"] == 19
    assert record["steps"] == 5 * 3
    assert len(record["losses"]) == 3
    assert record["losses"][2] < record["losses"][0]
    assert record["experts"] == {
        entry.model_name: entry.domain for entry in context.pool if entry.model_name in gate.matrices.experts
    }
    written = file.stat().st_mtime_ns
    variants = [MoE(**options, top_k=top_k).fit(context) for top_k in (1, 3)]
    assert all(variant.matrices == gate.matrices for variant in variants)
    assert len({gate, *variants}) == 3
    assert list(tmp_path.glob("learned/*/record.json")) == [file]
    assert file.stat().st_mtime_ns == written, "the variants train nothing"
    assert not list(file.parent.glob(".*"))


@pytest.mark.long
def test_an_interrupted_training_goes_on_and_ends_as_it_would_have(
    context_of: ContextOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(context_of(results=tmp_path / "whole"))
    monkeypatch.setattr(learning, "SAVED_EVERY", 2)
    collate, batches = learning.LeftPadding.__call__, []

    def interrupted(self: Any, examples: Any) -> Any:
        batches.append(examples)
        if len(batches) == 8:
            raise KeyboardInterrupt
        return collate(self, examples)

    monkeypatch.setattr(learning.LeftPadding, "__call__", interrupted)
    context = context_of(results=tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        CHEAP.fit(context)
    matrices, losses = trained(context)
    assert len(batches) == 8 + 4  # six of ten steps were saved
    assert losses == whole[1]
    assert matrices.by_module.keys() == whole[0].by_module.keys()
    assert all(torch.equal(matrix, whole[0].by_module[module]) for module, matrix in matrices.by_module.items())
    assert matrices == whole[0]  # the very same file


@pytest.mark.slow
def test_another_seed_draws_other_experts_and_trains_anew(context_of: ContextOf) -> None:
    first, second = (MoE(samples=1, epochs=1).fit(context_of(seed=seed)).matrices for seed in (0, 1))
    assert first.experts != second.experts
    assert first != second


def test_a_gate_that_goes_to_another_process_is_known_again(case: Case) -> None:
    gate = TokenGate(case.matrices, 1)
    copy = pickle.loads(pickle.dumps(gate))
    assert copy == gate
    assert hash(copy) == hash(gate)
    assert copy is not gate


def test_prompts_that_do_not_fit_are_a_users_mistake(context_of: ContextOf) -> None:
    with pytest.raises(UserError, match="option max_tokens of the gate is too small: the prompt template"):
        MoE(max_tokens=3).fit(context_of())


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_a_users_mistake(context_of: ContextOf) -> None:
    with pytest.raises(UserError, match="training the gate: the loss is nan at step 2; use another dtype"):
        MoE(samples=1, learning_rate=1e39).fit(context_of())


def test_a_learning_rate_beyond_float32_is_a_users_mistake(context_of: ContextOf) -> None:
    with pytest.raises(UserError, match=r"the option learning_rate is 1e\+300, too large for float32"):
        MoE(samples=1, learning_rate=1e300).fit(context_of())


@pytest.mark.slow
def test_experts_that_adapters_memory_does_not_hold_are_reported(
    context_of: ContextOf, benchmark: Benchmark, tiny: Profile
) -> None:
    context = context_of()
    room = 3 * (benchmark.adapters["people_qa"] / "adapter_model.safetensors").stat().st_size
    small = load_generator(replace(model_source(tiny, benchmark), adapter_memory=room))
    context._resources.generator = small
    message = r"the gate of moe needs all experts in memory .* raise adapters\.memory of the profile: \d+ adapters are"
    with pytest.raises(UserError, match=message):
        CHEAP.fit(context)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_a_step_too_large_for_memory_is_reported_with_the_options_that_make_it_smaller(
    context_of: ContextOf, generator: Generator, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    message = r"the gate of moe: a step does not fit .* lower the options batch_size \(4\) or max_tokens"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
        failing_steps(error, patch)
        CHEAP.fit(context_of())
    assert all(parameter.requires_grad for parameter in generator.model.base.parameters())
    assert CHEAP.fit(context_of()).matrices.experts == experts_of(context_of().pool, 0)


def test_another_error_in_training_is_not_taken_for_want_of_memory(
    context_of: ContextOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_steps(RuntimeError("the device is lost"), monkeypatch)
    with pytest.raises(RuntimeError, match="the device is lost"):
        CHEAP.fit(context_of())


def test_a_tokenizer_without_an_eos_token_is_a_users_mistake(
    context_of: ContextOf, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.tokenizer, "_special_tokens_map", {})
    with pytest.raises(UserError, match="it has no EOS token, so no adapter learns to end answers"):
        CHEAP.fit(context_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "option top_k is 0: Input should be greater than or equal to 1"),
        ({"epochs": 0}, "option epochs is 0: Input should be greater than or equal to 1"),
        ({"learning_rate": 0.0}, "option learning_rate is 0.0: Input should be greater than 0"),
    ],
)
def test_options_that_mean_nothing_are_a_users_mistake(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method moe_top1: {message}"):
        METHODS[0].with_options(options)


def failing_steps(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every forward pass of a model fail."""

    def refusing(self: LlamaForCausalLM, **arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "forward", refusing)


def trained(context: Context) -> tuple[Matrices, list[float]]:
    """The matrices of a cheap training, and its losses."""
    gate = CHEAP.fit(context)
    (file,) = context._resources.results.glob("learned/moe-*/record.json")
    return gate.matrices, json.loads(file.read_text())["losses"]
