"""The memory that is predicted from a model's shape, compared with the memory that torch's allocator gives out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from bench_composition import peak_bytes
from composition_cases import write_adapter
from loop_cases import generator_of
from transformers import LlamaConfig, LlamaForCausalLM

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.loop import Loop
from lora_retriever.generation.sampling import Sampling
from lora_retriever.running.memory import (
    MemoryUse,
    ModelShape,
    beside,
    low_rank_bytes,
    predicted_memory,
    size_text,
)
from peft_composition import ComposableModel

NEW = 8
QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEVEN_B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "vocab_size": 32000,
}  # fmt: skip


def test_llama_2_7b_as_its_paper_and_the_released_adapters_have_it() -> None:
    used = predicted_memory(
        ModelShape.of_config(SEVEN_B), 6_738_415_616, value_bytes=2, rows=32, length=512, new_tokens=50,
        read_tokens=4096, kept_tokens=100, adapters=48, rank=8, targets=QV, pair_rank=24,
    )  # fmt: skip
    assert used.weights == 13_476_831_232
    assert used.cache == 32 * 562 * 524_288  # half a MiB a token
    assert low_rank_bytes(ModelShape.of_config(SEVEN_B), 8, QV, 2) == 8_388_608  # an adapter's file: 8.4 MB in 16 bits
    assert used.adapters == 64 * 8_388_608
    assert used.pairs == 32 * 3 * 8_388_608
    assert used.joining == 8 * 512 * 524_288 + 100 * 524_288 + 8 * 3 * 8_388_608  # 8 rows, and beginnings


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
def test_the_peak_of_a_batch_that_rows_join_is_near_the_prediction(
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
    prompts = torch.randint(1, 64, (3 * rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    # Half of the batch is read at once, so its rows end together. Then as many prompts are read beside the other half.
    jobs = [Job(prompt, Composition({"a": 0.5, "b": 0.5}), mode, Sampling(NEW)) for prompt in prompts]
    read_tokens = rows * length // 2

    def answer() -> None:
        loop = Loop(
            generator_of(model, batch_size=rows, share_prefix=False),
            rows * (length + NEW),
            read_tokens=read_tokens,
            steps=1,
        )
        with closing(loop):
            ids = {loop.add(job) for job in jobs}
            assert {event.id for events in loop.ended() for event in events} == ids

    answer()  # tensors that are made once, such as rotary tables, are no part of a batch
    predicted = predicted_memory(
        ModelShape.of_config(config.to_dict()), base.num_parameters(), value_bytes=4, rows=rows, length=length,
        new_tokens=NEW, read_tokens=read_tokens, kept_tokens=0, adapters=2, rank=4, targets=targets,
        pair_rank=8 if mode == "mixture" else 4,
    )  # fmt: skip
    assert predicted.batch == pytest.approx(peak_bytes(answer, torch.device("cpu")), rel=0.2)
    stacks = model._residency.stacks.values()
    assert predicted.adapters == sum(stack.down.nbytes + stack.up.nbytes for stack in stacks)


def test_what_stands_beside_the_model_depends_on_the_device() -> None:
    shape, used = ModelShape.of_config(SEVEN_B), MemoryUse(100, 10, 40, 20, 20, 20)
    assert beside(used, shape, "cpu", 7) == {"encoder": 7, "tokenizer": 1270 * 32000}
    on_gpu = beside(used, shape, "cuda", 7)
    assert on_gpu == {"encoder": 0, "context": 1 << 29, "unused": 10}  # the encoder is freed first
    assert beside(used, shape, "cuda", 250)["encoder"] == 250 - 210


def test_sizes_are_written_for_people() -> None:
    assert size_text(143 << 20) == "143 MiB"
    assert size_text(3 << 29) == "1.50 GiB"
