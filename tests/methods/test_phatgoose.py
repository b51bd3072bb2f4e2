"""PHATGOOSE: the logits against a loop over tokens, and the training of every adapter by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from expert_cases import EXPERTS, Adapter, Case, padded, softmax
from torch import Tensor

from lora_retriever.methods.context import Context
from lora_retriever.methods.parts.gate_training import Matrices, _State, _write, examples_of
from lora_retriever.methods.phatgoose import Phatgoose, Vectors

PROMPTS = [[5, 9, 31, 17, 22, 40, 8], [11, 3], [7, 7, 29, 14, 2, 33]]
OFFERED = [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


def two_nearest(x: Tensor, matrix: Tensor, experts: list[Adapter | None]) -> Tensor:
    """The mixture of the two adapters with the largest logits, token after token: [n, d_out]."""
    rows = []
    for token in x:
        logits = {}
        for e, expert in enumerate(experts):
            if expert is not None:
                v, t = (values - values.mean() for values in (matrix[e], token))
                scale = ((v.square().mean() + 1e-5) * (t.square().mean() + 1e-5)).sqrt()
                logits[e] = float(v @ t / scale / len(t) ** 0.5)
        best = sorted(logits, key=lambda e: -logits[e])[:2]
        row = torch.zeros(1, dtype=torch.float64)
        for e, weight in softmax({e: logits[e] for e in best}).items():
            down, up, scaling = experts[e]  # type: ignore[misc]
            row = row + weight * scaling * up @ (down @ token)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.slow
@torch.no_grad()
def test_each_token_is_weighed_as_by_a_loop(tmp_path: Path) -> None:
    case = Case(tmp_path)
    with case.model.composed(list(EXPERTS), OFFERED, gate=Vectors(case.matrices)):
        logits = case.model(**padded(PROMPTS)).logits
    for row, (prompt, offered) in enumerate(zip(PROMPTS, OFFERED, strict=True)):
        expected = case.dense(offered, two_nearest)(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits[row, -len(prompt) :], expected, atol=1e-9, rtol=1e-9)


def test_trainings_of_different_experts_are_joined(tmp_path: Path) -> None:
    for name, modules in (("a", {"q": 3, "k": 2}), ("b", {"q": 3})):
        one = tmp_path / name
        _write(one, {f"matrix.{m}": torch.full((1, d), float(ord(name))) for m, d in modules.items()}, [name], _State())
    Matrices.join([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")
    found = Matrices.load(tmp_path / "joined")
    assert found.experts == ("a", "b")
    assert found.by_module["q"].tolist() == [[97.0] * 3, [98.0] * 3]
    assert found.by_module["k"].tolist() == [[97.0] * 2, [0.0] * 2]


@pytest.mark.long
def test_every_adapter_is_trained_on_its_own_samples(context_of: Callable[..., Context], tmp_path: Path) -> None:
    context = context_of()
    phatgoose = Phatgoose(samples=1, epochs=2)
    gate = phatgoose.fit(context)
    (file,) = tmp_path.glob("learned/phatgoose-*/record.json")
    losses = json.loads(file.read_text())["losses"]
    assert list(losses) == list(gate.vectors.experts) == context.names
    assert sum(history[-1] < history[0] for history in losses.values()) > len(losses) * 0.8
    own = examples_of(context, phatgoose.options, context.names[2])
    assert len(own) == 1
    assert own == examples_of(context, phatgoose.options)[2:3]
    assert phatgoose.fit(context) == gate
