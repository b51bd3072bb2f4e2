"""The information of a gate about a forward pass: which tokens are padding, and whether the pass reads the prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composition_cases import some_ids, write_adapter
from gate_cases import NAMES, OWN, PROMPTS, Adapted, Seeing, adapted_by, prompt_inputs
from model_families import InDouble, left_padded
from transformers import AutoConfig, AutoModelForCausalLM

from peft_composition import ComposableModel
from peft_composition.updates import Pass

MAMBA: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "expand": 2, "time_step_rank": 2,
    "eos_token_id": None, "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapted_by("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.slow
def test_a_head_that_sees_the_last_positions_alone_knows_which_are_real(llama):
    # The head gets the last two positions. In the row of the shortest prompt, only the last position is no padding.
    gate = Seeing()
    with torch.no_grad(), llama.model.composed(NAMES, OWN, gate=gate), InDouble():
        llama.model(**prompt_inputs(), logits_to_keep=2)
    real = {tokens.real.shape[1]: tokens.real for tokens in gate.seen}
    assert torch.equal(real[9], left_padded(PROMPTS)[1].bool())
    assert torch.equal(real[2], left_padded(PROMPTS)[1][:, -2:].bool())


def test_a_mask_speaks_of_no_module_whose_positions_are_not_the_passes():
    mask = torch.tensor([[False, True, True], [True, True, True]])
    reading, head = Pass(2, 3, mask), Pass(2, 3, mask, cut=True)
    cpu = torch.device("cpu")
    assert torch.equal(reading.real(2, 3, cpu), mask)
    assert torch.equal(head.real(2, 2, cpu), mask[:, 1:])
    for fewer_or_more in (reading.real(2, 2, cpu), reading.real(2, 4, cpu), head.real(2, 4, cpu)):
        assert fewer_or_more.all()
    for none in (reading.real(2, 0, cpu), head.real(2, 0, cpu)):
        assert none.shape == (2, 0)
    assert head.real(1, 3, cpu).shape == (1, 3), "some positions of one row's two beams"


def test_positions_that_the_head_is_given_one_by_one_count_as_real(llama):
    gate = Seeing()
    with torch.no_grad(), llama.model.composed(NAMES, OWN, gate=gate), InDouble():
        llama.model(**prompt_inputs(), logits_to_keep=torch.tensor([0, 8]))
    real = {tokens.real.shape[1]: tokens.real for tokens in gate.seen}
    assert real[2].all() and not real[9].all()


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 1])
def test_a_pass_reads_the_prompts_also_where_the_cache_cannot_say_what_it_has_seen(tmp_path, length):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **MAMBA)).eval()
    model, gate = ComposableModel(base), Seeing()
    model.load_adapter(write_adapter(tmp_path, base, 0, target_modules=["in_proj"]), "adapter")
    for _ in range(2):
        with model.composed(["adapter"], torch.ones(2, 1), gate=gate):
            model.generate(some_ids(2, length), max_new_tokens=3, do_sample=False)
            if length > 1:
                model.generate(some_ids(2, length), max_new_tokens=3, do_sample=False)
    passes = [(tokens.x.shape[1], tokens.first) for tokens in gate.seen]
    assert passes == [(length, True), (1, False), (1, False)] * (4 if length > 1 else 2)


def test_all_is_real_where_the_mask_says_nothing_of_padding(llama):
    for mask in (None, torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()):
        gate = Seeing()
        with torch.no_grad(), llama.model.composed(NAMES, OWN[:2], gate=gate), InDouble():
            llama.model(input_ids=some_ids(2), attention_mask=mask)
        assert gate.seen
        assert all(tokens.real.all() for tokens in gate.seen)
