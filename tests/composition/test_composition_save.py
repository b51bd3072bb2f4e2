"""A saved composition is an ordinary PEFT checkpoint: upstream PEFT computes the same from it."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from composition_cases import edit_config, some_ids, tiny_gpt2, write_adapter
from peft import PeftModel
from safetensors.torch import load_file

from peft_composition import AdapterError, ComposableModel, CompositionError

COMPOSITIONS = [
    (["plain", "alike"], [0.5, 0.5]),
    (["plain", "rank2", "rslora"], [0.6, 0.3, 0.1]),
    (["patterns", "other_targets", "regex"], [1.0, -0.5, 0.7]),
    (["plain", "alpha32"], [0.0, 1.0]),
]


def composed_logits(model, names, weights, mode, ids):
    with torch.no_grad(), model.composed(names, [weights] * len(ids), mode):
        return model(input_ids=ids).logits


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize(("names", "weights"), COMPOSITIONS, ids=str)
def test_upstream_peft_computes_the_same_from_it(model, tmp_path, names, weights, mode):
    ids = some_ids(2)
    model.save_composition(names, weights, mode=mode, path=tmp_path / "saved")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved"]
    upstream = PeftModel.from_pretrained(deepcopy(model.base), str(tmp_path / "saved"))
    with torch.no_grad():
        actual = upstream(input_ids=ids).logits
    torch.testing.assert_close(actual, composed_logits(model, names, weights, mode, ids), atol=2e-5, rtol=2e-5)


def test_it_loads_again_here_and_composes_on(model, tmp_path):
    ids = some_ids(2)
    model.save_composition(["plain", "rank2"], [0.5, 0.5], path=tmp_path / "saved")
    model.load_adapter(tmp_path / "saved", name="both")
    torch.testing.assert_close(
        composed_logits(model, ["both"], [1.0], "mixture", ids),
        composed_logits(model, ["plain", "rank2"], [0.5, 0.5], "mixture", ids),
        atol=1e-5,
        rtol=1e-5,
    )


def test_it_has_one_rank_short_module_names_and_a_tensor_for_each(model, tmp_path):
    model.save_composition(["plain", "rank2", "regex"], [0.4, 0.3, 0.3], mode="mixture", path=str(tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["o_proj", "q_proj", "up_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (6, 6, {}), "q_proj: ranks 4 and 2"
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 4
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {6}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    untouched = tensors["base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"]
    assert not untouched.any(), "no adapter targets o_proj of the first layer, but its last name is listed"


def test_a_fusion_has_the_largest_rank(model, tmp_path):
    model.save_composition(["plain", "rank2"], [0.5, 0.5], mode="fusion", path=tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["r"] == 4


def test_it_keeps_the_base_and_task_that_the_adapters_name(base, tmp_path):
    folder = write_adapter(tmp_path / "named", base, 1, task_type="CAUSAL_LM")
    edit_config(folder, base_model_name_or_path="some/base")
    model = ComposableModel(base)
    model.load_adapter(folder, "named")
    model.save_composition(["named"], [1.0], path=tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["task_type"]) == ("some/base", "CAUSAL_LM")


@pytest.mark.slow
def test_gpt2(tmp_path):
    gpt2 = tiny_gpt2()
    model = ComposableModel(gpt2)
    model.load_adapter(write_adapter(tmp_path / "a", gpt2, 1, target_modules=["c_attn"], fan_in_fan_out=True), "a")
    model.save_composition(["a"], [0.5], path=tmp_path / "saved")
    upstream = PeftModel.from_pretrained(deepcopy(gpt2), str(tmp_path / "saved"))
    ids = some_ids(2)
    with torch.no_grad():
        actual = upstream(input_ids=ids).logits
    torch.testing.assert_close(actual, composed_logits(model, ["a"], [0.5], "mixture", ids), atol=2e-5, rtol=2e-5)


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(model, tmp_path):
    path = tmp_path / "saved"
    for names, weights, error in [
        (["plain"], [0.0], "base model itself"),
        (["plain"], [[1.0]], "one number for each adapter"),
        (["plain"], [1.0, 2.0], "weights"),
        (["plain"], [float("nan")], "NaN"),
        (["plain"], ["a"], "numbers"),
        (["dart"], [1.0], "not loaded"),
    ]:
        with pytest.raises((CompositionError, AdapterError), match=error):
            model.save_composition(names, weights, path=path)
    with pytest.raises(CompositionError, match="unknown mode"):
        model.save_composition(["plain"], [1.0], mode="soup", path=path)
    assert not list(tmp_path.iterdir())


def test_an_existing_checkpoint_is_never_overwritten(model, tmp_path):
    model.save_composition(["plain"], [1.0], path=tmp_path / "saved")
    before = (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(CompositionError, match="exists already"):
        model.save_composition(["alike"], [1.0], path=tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    model.save_composition(["alike"], [1.0], path=tmp_path / "empty")


def test_a_write_that_fails_leaves_no_half_checkpoint(model, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("peft_composition.save.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        model.save_composition(["plain"], [1.0], path=tmp_path / "saved")
    assert not list(tmp_path.iterdir())
