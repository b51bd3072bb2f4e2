"""`doctor --measure` distinguishes an exact composition from a wrong composition, and its figures are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_retriever.experiment.profile import Profile
from lora_retriever.running import measuring
from lora_retriever.running.measured_findings import measured
from peft_composition import updates


@pytest.fixture
def few(tiny: Profile, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The miniature with short answers. Six rows are answered in batches of three, and three of the six rows alone."""
    monkeypatch.setattr(measuring, "ROWS", 4)
    monkeypatch.setattr(measuring, "ALONE", 4)
    settings = {"max_new_tokens": 3, "batch_size": 3}
    return tiny.model_copy(update={"generation": tiny.generation.model_copy(update=settings)})


@pytest.mark.slow
def test_the_miniature_is_exact_and_every_row_is_answered(few: Profile) -> None:
    findings, figures = measured(few)
    assert {finding.level for finding in findings} == {"ok"}
    assert figures["rows"] == 6 and figures["alone"] == 3 and figures["differing"] == []
    assert all(0 < error["composed"] < 1e-6 for error in figures["modules"])
    assert {error["mode"] for error in figures["modules"]} == {"mixture", "fusion"}
    assert figures["decoded_tokens_per_second"] > 0 < figures["read_tokens_per_second"]


@pytest.mark.slow
def test_a_composition_that_is_not_exact_is_a_problem(few: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    add_pair = updates.add_pair

    def slightly_wrong(x: Any, y: Any, pair: Any) -> torch.Tensor:
        return add_pair(x, y, pair).mul_(1.001)

    monkeypatch.setattr(updates, "add_pair", slightly_wrong)
    findings, _ = measured(few)
    assert [finding.text.partition(":")[0] for finding in findings if finding.level == "problem"] == ["exactness"]
