"""The memory that is predicted from a model's shape, held against what torch's allocator hands out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_composition import peak_bytes
from composition_cases import write_adapter
from transformers import LlamaConfig, LlamaForCausalLM

from lora_retriever.running.memory import ModelShape, low_rank_bytes, predicted_memory
from peft_composition import ComposableModel

QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEVEN_B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "vocab_size": 32000,
}  # fmt: skip


def test_llama_2_7b_as_its_paper_and_the_released_adapters_have_it() -> None:
    used = predicted_memory(
        ModelShape.of_config(SEVEN_B), 6_738_415_616, value_bytes=2, rows=32, length=512, new_tokens=50, adapters=48,
        rank=8, targets=QV, pair_rank=24,
    )  # fmt: skip
    assert used.weights == 13_476_831_232
    assert used.cache == 32 * 562 * 524_288  # half a MiB a token
    assert low_rank_bytes(ModelShape.of_config(SEVEN_B), 8, QV, 2) == 8_388_608  # an adapter's file: 8.4 MB in 16 bits
    assert used.adapters == 64 * 8_388_608
    assert used.pairs == 32 * 3 * 8_388_608


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "layers", "rows", "length", "targets", "mode"),
    [
        (64, 2, 4, 100, ALL, "mixture"),
        (128, 4, 8, 30, QV, "fusion"),
        (96, 3, 16, 64, QV, "mixture"),
        (64, 6, 3, 200, ALL, "fusion"),
    ],
)
def test_the_peak_of_a_batch_is_near_the_prediction(
    tmp_path: Path, hidden: int, layers: int, rows: int, length: int, targets: tuple[str, ...], mode: str
) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=512, eos_token_id=None,
    )  # fmt: skip
    base = LlamaForCausalLM(config).eval()
    model = ComposableModel(base)
    names = ["a", "b"]
    for place, name in enumerate(names):
        model.load_adapter(write_adapter(tmp_path / name, base, place, target_modules=list(targets)), name=name)
    prompts = torch.randint(1, 64, (rows, length)).tolist()

    def answer() -> None:
        with model.composed(names, [[0.5, 0.5]] * rows, mode=mode):
            model.generate(input_ids=torch.tensor(prompts), max_new_tokens=8, do_sample=False, pad_token_id=0)

    answer()  # what is made once, such as the rotary tables, is no part of a batch
    predicted = predicted_memory(
        ModelShape.of_config(config.to_dict()), base.num_parameters(), value_bytes=4, rows=rows, length=length,
        new_tokens=8, adapters=2, rank=4, targets=targets, pair_rank=8 if mode == "mixture" else 4,
    )  # fmt: skip
    measured = peak_bytes(answer, torch.device("cpu"))
    assert predicted.cache + predicted.pairs + predicted.activations == pytest.approx(measured, rel=0.2)
    stacks = model._residency.stacks.values()
    assert predicted.adapters == sum(stack.down.nbytes + stack.up.nbytes for stack in stacks)
