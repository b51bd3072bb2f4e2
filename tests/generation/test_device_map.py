"""A base model that accelerate spreads over devices: the same answers as in one piece."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from accelerate import dispatch_model
from places import TINY

from lora_retriever.data.rows import Row
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import load_composable, load_tokenizer
from lora_retriever.methods import Composition


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_a_spread_base_answers_as_one_in_one_piece(tiny: Profile, tiny_rows: list[Row], mode: str) -> None:
    names = ["passive", "synonyms", "to_velan"]
    adapters = {name: TINY / "adapters" / name for name in names}
    load = partial(load_composable, TINY / "base", adapters, torch.float32)
    whole, spread = load("cpu"), load("balanced")
    # On several GPUs, `balanced` wraps every module's forward. On a CPU alone `balanced` wraps nothing, so the test
    # does this.
    places = {f"model.layers.{place}": "cpu" for place in range(len(whole.base.model.layers))}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    dispatch_model(spread.base, places, main_device="cpu", force_hooks=True)
    assert hasattr(spread.base.model.layers[0].self_attn.q_proj, "_hf_hook")

    tokenizer = load_tokenizer(TINY / "base")
    prompts = make_prompts([row.inputs for row in tiny_rows[:40:5]], tokenizer, tiny.generation)
    compositions = [Composition(dict(zip(names, (0.5, 0.25, 0.25), strict=True)))] * len(prompts)
    answers = [
        Generator(model, tokenizer, tiny.generation).answer(prompts, compositions, mode) for model in (whole, spread)
    ]
    assert answers[0] == answers[1]
    assert any(answer.text for answer in answers[0])
