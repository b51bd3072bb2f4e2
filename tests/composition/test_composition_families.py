"""Composition is exact in float64, against dense matrices, in every family of models that people adapt."""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import Parts, merged, parts_of, write_adapter
from model_families import DECODERS, T5, Family, InDouble, left_padded, prompts_of
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition import AdapterError, ComposableModel

NAMES = ("usual", "full")
WEIGHTS = torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.0, 0.0], [-0.75, 1.5]])
PROMPTS = prompts_of([9, 5, 7, 1])
FOLLOWING = torch.tensor([[5], [6], [7], [8]])
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
FAMILIES = {**DECODERS, "t5": T5}


class Adapted:
    """A tiny model of one family, two adapters of this model, and the dense models of their compositions."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.base = family.build()
        more: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM" if self.base.config.is_encoder_decoder else "CAUSAL_LM"}
        if family.model_type == "gpt2":
            more["fan_in_fan_out"] = True
        usual = write_adapter(folder / "usual", self.base, seed=1, target_modules=list(family.targets), **more)
        full = write_adapter(
            folder / "full", self.base, seed=2, target_modules="all-linear", r=2, use_rslora=True, **more
        )
        self.folders = [usual, full]
        self._parts: list[Parts] = [parts_of(adapter, self.base) for adapter in self.folders]
        self.model = ComposableModel(self.base)
        for name, adapter in zip(NAMES, self.folders, strict=True):
            self.model.load_adapter(adapter, name)

    def dense(self, row: int, mode: str) -> Any:
        """The model with one row's composition added to its matrices."""
        return merged(self.base, self._parts, WEIGHTS[row].tolist(), mode)


@pytest.fixture(scope="module")
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return Adapted(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def options(base: PreTrainedModel, mask: Tensor, new: int) -> dict[str, Any]:
    """The mask, and the positions of the last `new` tokens in their rows, for models that take them."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
    takes = inspect.signature(base.forward).parameters
    return {"attention_mask": mask, **({"position_ids": positions} if "position_ids" in takes else {})}


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("adapted", DECODERS, indirect=True)
def test_logits_are_the_dense_models_in_prefill_and_in_a_cached_step(adapted, mode):
    ids, mask = left_padded(PROMPTS)
    longer = torch.cat([mask, mask.new_ones(4, 1)], dim=1)
    base = adapted.base
    with torch.no_grad(), adapted.model.composed(NAMES, WEIGHTS, mode) as model, InDouble():
        first = model(input_ids=ids, **options(base, mask, ids.shape[1]), use_cache=True)
        step = model(input_ids=FOLLOWING, **options(base, longer, 1), past_key_values=first.past_key_values)
    for row, prompt in enumerate(PROMPTS):
        alone = torch.tensor([[*prompt, *FOLLOWING[row].tolist()]])
        with torch.no_grad(), InDouble():
            expected = adapted.dense(row, mode)(input_ids=alone).logits[0]
            plain = base(input_ids=alone).logits[0]
        assert_same(torch.cat([first.logits[row, -len(prompt) :], step.logits[row]]), expected)
        assert ((expected - plain).abs().max() > 0.05) == WEIGHTS[row].any(), "the adapters do something"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("adapted", FAMILIES, indirect=True)
def test_generated_tokens_are_the_dense_models(adapted, mode):
    ids, mask = left_padded(PROMPTS)
    with adapted.model.composed(NAMES, WEIGHTS, mode) as model, InDouble():
        tokens = model.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for row, prompt in enumerate(PROMPTS):
        alone = torch.tensor([prompt])
        with InDouble():
            expected = adapted.dense(row, mode).generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)
        assert tokens[row, -6:].tolist() == expected[0, -6:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("adapted", ["t5"], indirect=True)
def test_an_encoder_decoders_logits_are_the_dense_models(adapted, mode):
    ids, mask = left_padded(PROMPTS)
    answers = torch.tensor(prompts_of([5] * 4, seed=9))
    with torch.no_grad(), adapted.model.composed(NAMES, WEIGHTS, mode) as model, InDouble():
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=answers).logits
        with_labels = model(input_ids=ids, attention_mask=mask, labels=answers)
        first = model(input_ids=ids, attention_mask=mask, decoder_input_ids=answers[:, :-1], use_cache=True)
        step = model(
            input_ids=None, attention_mask=mask, decoder_input_ids=answers[:, -1:],
            encoder_outputs=(first.encoder_last_hidden_state,), past_key_values=first.past_key_values,
        )  # fmt: skip
    assert_same(torch.cat([first.logits, step.logits], dim=1), logits)
    losses = []
    for row, prompt in enumerate(PROMPTS):
        dense, alone, answer = adapted.dense(row, mode), torch.tensor([prompt]), answers[row : row + 1]
        with torch.no_grad(), InDouble():
            assert_same(logits[row], dense(input_ids=alone, decoder_input_ids=answer).logits[0])
            expected = dense(input_ids=alone, labels=answer)
        assert_same(with_labels.logits[row], expected.logits[0])
        losses.append(expected.loss)
    assert_same(with_labels.loss, torch.stack(losses).mean())


@pytest.mark.slow
@pytest.mark.parametrize("adapted", ["t5"], indirect=True)
def test_an_encoder_decoders_beams_share_their_rows_composition(adapted):
    ids, mask = left_padded(PROMPTS)
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    with adapted.model.composed(NAMES, WEIGHTS, "fusion") as model:
        tokens = model.generate(input_ids=ids, attention_mask=mask, **beams)
    for row, prompt in enumerate(PROMPTS):
        expected = adapted.dense(row, "fusion").generate(torch.tensor([prompt]), **beams)
        assert tokens[2 * row : 2 * row + 2].tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("adapted", ["t5"], indirect=True)
def test_an_encoder_decoders_composition_is_saved_and_read_by_peft(adapted, tmp_path):
    path = tmp_path / "saved"
    adapted.model.save_composition(NAMES, WEIGHTS[0], "mixture", path=path)
    saved: Any = PeftModel.from_pretrained(deepcopy(adapted.base), path)
    assert saved.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    ids, answers = torch.tensor(prompts_of([6])), torch.tensor(prompts_of([5], seed=9))
    with torch.no_grad(), InDouble():
        expected = adapted.dense(0, "mixture")(input_ids=ids, decoder_input_ids=answers).logits
        actual = saved(input_ids=ids, decoder_input_ids=answers).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)  # checkpoints hold float32


@pytest.mark.slow
@pytest.mark.parametrize("adapted", FAMILIES, indirect=True)
def test_an_adapter_of_another_family_is_refused(adapted, tmp_path):
    # GPT-NeoX and Falcon have modules of the same names at other paths; so have Llama and OPT.
    for other in ("gpt_neox", "gpt2", "llama", "t5"):
        if other.split("_")[0] in type(adapted.base).__name__.lower():
            continue
        family = FAMILIES[other]
        folder = write_adapter(tmp_path / other, family.build(), seed=1, target_modules=list(family.targets))
        try:
            adapted.model.load_adapter(folder, other)
        except AdapterError as error:
            assert f"adapter '{other}', module '" in str(error)
            assert "another base" in str(error)
        else:
            assert other == "llama"
            adapted.model.unload_adapter(other)
        assert adapted.model.adapters == list(NAMES)
