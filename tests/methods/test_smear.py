"""SMEAR over adapters: the parameters averaged by the prompt's mean, through decoding and in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from expert_cases import EXPERTS, Adapter, Case, greedy, padded, softmax, until
from loop_cases import continued_together, generated
from torch import Tensor, nn

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.context import Context
from lora_retriever.methods.parts.gate_training import GateInTraining
from lora_retriever.methods.smear import PromptGate, Smear, prompt_weights
from peft_composition import Tokens

PROMPTS = [[5, 9, 31, 17, 22, 40, 8], [11, 3], [7, 7, 29, 14, 2, 33], [21, 12, 45, 6, 30, 19, 4, 38]]
OFFERED = [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("experts"))


def averaged_experts(x: Tensor, matrix: Tensor, experts: list[Adapter | None], prompt: int) -> Tensor:
    """(Σ_e w_e s_e B_e)(Σ_e w_e A_e) x, with w of the mean over the first `prompt` tokens of x [n, d_in]."""
    mean = x[:prompt].mean(dim=0)
    scores = {e: float(matrix[e] @ mean) for e, expert in enumerate(experts) if expert is not None}
    if not scores:
        return torch.zeros(1, dtype=torch.float64)
    used = [(weight, *experts[e]) for e, weight in softmax(scores).items()]
    rank = max(down.shape[0] for _, down, _, _ in used)
    down_mean = torch.zeros(rank, x.shape[1], dtype=torch.float64)
    up_mean = torch.zeros(used[0][2].shape[0], rank, dtype=torch.float64)
    for weight, down, up, scaling in used:
        down_mean[: down.shape[0]] += weight * down
        up_mean[:, : down.shape[0]] += weight * scaling * up
    return x @ (up_mean @ down_mean).T


@pytest.mark.slow
@torch.no_grad()
def test_a_padded_batch_has_the_outputs_of_densely_averaged_parameters(case: Case) -> None:
    with case.model.composed(list(EXPERTS), OFFERED, "fusion", gate=PromptGate(case.matrices)):
        logits = case.model(**padded(PROMPTS)).logits
    for row, (prompt, offered) in enumerate(zip(PROMPTS, OFFERED, strict=True)):
        dense = case.dense(offered, partial(averaged_experts, prompt=len(prompt)))
        expected = dense(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits[row, -len(prompt) :], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@torch.no_grad()
def test_the_prompts_weights_hold_while_rows_end_and_leave(case: Case) -> None:
    models = [
        case.dense(offered, partial(averaged_experts, prompt=len(prompt)))
        for offered, prompt in zip(OFFERED, PROMPTS, strict=True)
    ]
    answers = [greedy(model, prompt, 8) for model, prompt in zip(models, PROMPTS, strict=True)]
    end = answers[0][2]
    gate = PromptGate(case.matrices)
    compositions = [Composition(dict(zip(EXPERTS, row, strict=True))) for row in OFFERED]
    found = continued_together(case.model, PROMPTS, [end], 8, compositions, "fusion", gate)
    assert found == [until(answer, end) for answer in answers]
    with case.model.composed(list(EXPERTS), OFFERED, "fusion", gate=gate):
        case.model(**padded(PROMPTS[::-1]))  # the memory of an earlier pass does not count
        assert generated(case.model, PROMPTS, [end], 8) == found


def test_training_sees_the_weights_that_the_answer_is_made_with(case: Case) -> None:
    """One pass reads the prompt and the answer.

    The prompt alone decides the weights, and gradients reach every matrix.
    """
    gate = GateInTraining(prompt_weights)
    row, prompt = PROMPTS[3], 5
    with case.model.composed(list(EXPERTS), OFFERED[:1], "fusion", gate=gate):
        for module, matrix in case.by_module.items():
            gate.parameters[module] = nn.Parameter(matrix)
        gate.prompts = torch.arange(len(row))[None] < prompt  # [1, n]
        logits = case.model(input_ids=torch.tensor([row])).logits  # [1, n, vocabulary]
        logits[0, prompt:].logsumexp(dim=-1).sum().backward()
    with torch.no_grad():
        expected = case.dense(OFFERED[0], partial(averaged_experts, prompt=prompt))(
            input_ids=torch.tensor([row])
        ).logits
    torch.testing.assert_close(logits.detach(), expected, atol=1e-9, rtol=1e-9)
    for module, parameter in gate.parameters.items():
        alone = sum(module in parts for parts in case.parts.values()) == 1  # a single expert always has weight 1
        assert parameter.grad is not None
        assert parameter.grad.any() != alone


def test_in_training_a_head_that_is_given_the_last_positions_takes_the_prompts_of_these() -> None:
    gate = GateInTraining(prompt_weights)
    gate.parameters["lm_head"] = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    gate.prompts = torch.tensor([[True, True, True, False, False]])
    x = torch.tensor([[[0.5, 2.0], [9.0, 9.0], [8.0, 3.0]]])  # [1, the last 3 of 5 positions, d_in]
    tokens = Tokens(
        x=x, inner=torch.zeros(1, 3, 2, 1), offered=torch.ones(1, 2, dtype=torch.bool), batch=1, first=True, memory={},
        real=torch.ones(1, 3, dtype=torch.bool), rows=torch.tensor([0]),
    )  # fmt: skip
    expected = torch.tensor([softmax({0: 0.5, 1: 2.0})[e] for e in (0, 1)]).expand(1, 3, 2)
    torch.testing.assert_close(gate.weights("lm_head", tokens).detach(), expected)


@pytest.mark.slow
def test_training_lowers_the_loss_and_is_found_again(context_of: Callable[..., Context], tmp_path: Path) -> None:
    smear = Smear(samples=1, epochs=3)
    gate = smear.fit(context_of())
    (file,) = tmp_path.glob("learned/smear-*/record.json")
    record = json.loads(file.read_text())
    assert record["mode"] == "fusion"
    assert record["losses"][2] < record["losses"][0]
    written = file.stat().st_mtime_ns
    assert smear.fit(context_of()) == gate
    assert file.stat().st_mtime_ns == written
