"""Compositions written without the base's model weights: the same tensors as from the model in memory."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from composition_cases import edit_config, some_ids, tiny_gpt2, tiny_llama, write_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file

from peft_composition import AdapterError, ComposableModel, CompositionError, CompositionWriter

RANKS = (8, 16, 32)
NAMES, WEIGHTS = ["rslora", "patterns", "rank2"], [0.6, -0.5, 0.3]


@pytest.fixture
def writer(on_meta, folders) -> CompositionWriter:
    made = CompositionWriter(on_meta, torch.float32)
    for name in ("plain", *NAMES[::-1]):
        made.load_adapter(folders[name], name)
    return made


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tensors_are_those_of_the_model_in_memory(base, folders, on_meta, tmp_path, mode, dtype):
    model = ComposableModel(deepcopy(base).to(dtype))
    made = CompositionWriter(on_meta, dtype)
    for target in (model, made):
        for name in NAMES[::-1]:
            target.load_adapter(folders[name], name)
    model.save_composition(NAMES, WEIGHTS, mode=mode, path=tmp_path / "in_memory")
    made.write(NAMES, WEIGHTS, mode, path=tmp_path / "without")
    expected, actual = tensors_of(tmp_path / "in_memory"), tensors_of(tmp_path / "without")
    assert expected.keys() == actual.keys()
    for key, tensor in actual.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[key].to(dtype)), key


@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_upstream_peft_computes_the_same_from_a_padded_one(writer, model, tmp_path, mode):
    ids = some_ids(2)
    rank = writer.write(NAMES, WEIGHTS, mode, path=tmp_path / "padded", ranks=RANKS)
    assert rank == {"mixture": 16, "fusion": 8}[mode], "ranks 4 + 6 + 2, and 6"
    assert {t.shape[0] for key, t in tensors_of(tmp_path / "padded").items() if "lora_A" in key} == {rank}
    config = json.loads((tmp_path / "padded" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    upstream = PeftModel.from_pretrained(deepcopy(model.base), str(tmp_path / "padded"))
    with torch.no_grad(), model.composed(NAMES, [WEIGHTS] * 2, mode):
        torch.testing.assert_close(upstream(input_ids=ids).logits, model(input_ids=ids).logits, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_modules_that_store_their_weight_transposed(tmp_path):
    base = tiny_gpt2()
    folder = write_adapter(tmp_path / "adapter", base, seed=1, target_modules=["c_attn"], fan_in_fan_out=True)
    writer = CompositionWriter(tiny_gpt2().to("meta"), torch.float32)
    writer.load_adapter(folder, "one")
    writer.write(["one"], [1.0], path=tmp_path / "written")
    upstream = [PeftModel.from_pretrained(deepcopy(base), str(path)) for path in (folder, tmp_path / "written")]
    with torch.no_grad():
        expected, actual = (model(input_ids=some_ids(1)).logits for model in upstream)
    torch.testing.assert_close(actual, expected)


def test_its_size_is_told_before_it_is_written(writer, tmp_path):
    rank = writer.write(NAMES, WEIGHTS, path=tmp_path / "written", ranks=RANKS)
    written = sum(tensor.nbytes for tensor in tensors_of(tmp_path / "written").values())
    assert written == writer.size(rank)
    assert writer.ranks == {"plain": 4, "rank2": 2, "patterns": 6, "rslora": 4}


def test_a_composition_of_zeros_has_every_module_of_every_adapter(writer, tmp_path):
    assert writer.write_zeros(path=tmp_path / "zeros", ranks=RANKS) == 8
    zeros = tensors_of(tmp_path / "zeros")
    assert not any(tensor.any() for tensor in zeros.values())
    for name in writer.ranks:
        writer.write([name], [1.0], path=tmp_path / name)
        assert zeros.keys() >= tensors_of(tmp_path / name).keys()


def test_an_adapter_that_is_unloaded_may_be_loaded_again(writer, folders, tmp_path):
    writer.unload_adapter("plain")
    with pytest.raises(AdapterError, match="adapter 'plain': it is not loaded"):
        writer.write(["plain"], [1.0], path=tmp_path / "never")
    with pytest.raises(AdapterError, match="adapter 'plain': it is not loaded"):
        writer.unload_adapter("plain")
    writer.load_adapter(folders["rank2"], "plain")
    assert writer.ranks == {"rank2": 2, "patterns": 6, "rslora": 4, "plain": 2}


def test_what_cannot_be_written(writer, folders, on_meta, tmp_path):
    path = tmp_path / "never"
    with pytest.raises(CompositionError, match="has rank 12, and the highest allowed is 8"):
        writer.write(NAMES, WEIGHTS, path=path, ranks=(8,))
    with pytest.raises(AdapterError, match="adapter 'unknown': it is not loaded"):
        writer.write(["plain", "unknown"], [0.5, 0.5], path=path)
    with pytest.raises(CompositionError, match="all weights are zero"):
        writer.write(["plain"], [0.0], path=path)
    with pytest.raises(CompositionError, match="unknown mode 'sum'"):
        writer.write(["plain"], [1.0], "sum", path=path)
    assert not path.exists()
    with pytest.raises(CompositionError, match="no adapter is loaded"):
        CompositionWriter(on_meta, torch.float32).write_zeros(path=path)
    with pytest.raises(AdapterError, match="loaded already"):
        writer.load_adapter(folders["plain"], "plain")


def test_values_that_overflow_in_the_dtype_of_the_base(folders, on_meta, tmp_path):
    folder = write_adapter(tmp_path / "huge", tiny_llama(), seed=1)
    edit_config(folder, lora_alpha=1e7)
    with pytest.raises(AdapterError, match=r"adapter 'huge', module '.*': its values overflow in torch.float16"):
        CompositionWriter(on_meta, torch.float16).load_adapter(folder, "huge")


@pytest.mark.slow
def test_a_weight_of_the_base_in_the_adapters_file_cannot_be_compared(on_meta, tmp_path):
    folder = write_adapter(tmp_path / "with_a_copy", tiny_llama(), seed=1)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.weight": tiny_llama().lm_head.weight.detach()}, file)
    with pytest.raises(AdapterError, match=r"'base_model.model.lm_head.weight', which cannot be compared with a base"):
        CompositionWriter(on_meta, torch.float32).load_adapter(folder, "copy")
