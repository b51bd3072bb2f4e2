"""Adapters of other programs: the composition of an odd file equals the result of upstream PEFT with a sound file."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import edit_config, some_ids, write_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from peft_composition import AdapterError, AdapterWarning, ComposableModel, inspect_adapter

TEXT = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QV = ["q_proj", "v_proj"]


def rename(folder: Path, new_name: Callable[[str], str]) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({new_name(key): tensor for key, tensor in load_file(file).items()}, file)
    return folder


def logits_of_peft(base: Any, folder: Path) -> Tensor:
    """Logits of upstream PEFT with one adapter, [2, 7, vocabulary]."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(deepcopy(base), str(folder)).eval()(input_ids=some_ids(2)).logits


def logits_here(base: Any, folder: Path) -> Tensor:
    model = ComposableModel(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        model.load_adapter(folder, "odd")
    with torch.no_grad(), model.composed(["odd"], [[1.0], [1.0]]):
        return model(input_ids=some_ids(2)).logits


def composes(base: Any, folder: Path, expected: Tensor) -> None:
    """Assert that an adapter gives the expected logits, and that these are not the base's."""
    with torch.no_grad():
        plain = base(input_ids=some_ids(2)).logits
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(logits_here(base, folder), expected, atol=1e-5, rtol=1e-5)


# Names of tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    "new_name",
    [
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace(".weight", ".my-adapter_2.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: f"_orig_mod.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
        lambda key: f"module.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model.module."),
        lambda key: f"module._orig_mod.{key.removeprefix('base_model.model.')}",
        lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."),
        lambda key: f"base_model.model.{key}",
        lambda key: f"_orig_mod.module.base_model.model.{key}".replace(".weight", ".default.weight"),
    ],
    ids=[
        "default", "a name", "no prefix", "compiled", "compiled base", "compiled layer", "DDP", "DDP inside",
        "both and no prefix", "FSDP", "wrapped twice", "all at once",
    ],
)  # fmt: skip
def test_names_with_wrappers_prefixes_and_the_adapters_name_are_read(base, folders, folder, new_name):
    composes(base, rename(folder, new_name), logits_of_peft(base, folders["plain"]))
    inspect_adapter(folder, "odd")


def test_a_file_with_two_adapters_is_refused(base, folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key.replace(".weight", f".{n}.weight"): t.clone() for key, t in tensors.items() for n in "ab"}, file)
    said = r"lora_A twice, as '.*lora_A.a.weight' and '.*lora_A.b.weight'; save each adapter into a file of its own"
    with pytest.raises(AdapterError, match=said):
        ComposableModel(base).load_adapter(folder, "two")
    with pytest.raises(AdapterError, match=said):
        inspect_adapter(folder, "two")


def gemma3() -> Any:
    settings = {**TEXT, "head_dim": 8, "sliding_window": 8}
    config = Gemma3Config(
        text_config=settings, vision_config=VISION, mm_tokens_per_image=4, image_token_index=63, boi_token_index=62,
        eoi_token_index=61,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config)


def llava() -> Any:
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=63
    )
    return LlavaForConditionalGeneration(config)


def qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=63, video_token_id=62,
        vision_start_token_id=61, vision_end_token_id=60,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "today", "before"),
    [
        (gemma3, "model.language_model.", "language_model.model."),
        (llava, "model.language_model.", "language_model.model."),
        (qwen2_vl, "model.language_model.", "model."),
    ],
)
def test_a_text_model_that_transformers_has_moved_is_found(tmp_path, build, today, before):
    torch.manual_seed(0)
    base = build().eval()
    folder = write_adapter(tmp_path / "moved", base, 1, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    expected = logits_of_peft(base, folder)
    edit_config(folder, target_modules=QV)
    rename(folder, lambda key: key.replace(f"base_model.model.{today}", f"base_model.model.{before}"))
    composes(base, folder, expected)
    if build is not qwen2_vl:  # PEFT 0.21 does not change the names of Qwen2-VL, and then loads nothing
        torch.testing.assert_close(logits_of_peft(base, folder), expected)
    with torch.device("meta"):
        header = inspect_adapter(folder, "moved", build())
    assert all(module.startswith(today) for module in header.modules)


@pytest.mark.slow
def test_a_vision_tower_without_tensors_is_left_alone_and_the_user_is_told(tmp_path):
    torch.manual_seed(0)
    base = gemma3().eval()
    folder = write_adapter(tmp_path / "text", base, 1, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    edit_config(folder, target_modules=QV)
    model = ComposableModel(base)
    with pytest.warns(AdapterWarning, match=r"adapter 'text': .*vision_tower.*for which its file has no tensors"):
        model.load_adapter(folder, "text")
    assert len(model.adapter_notes("text")) == 1


@pytest.mark.slow
def test_a_vision_tower_or_a_text_model_with_some_of_its_tensors_is_refused(tmp_path):
    torch.manual_seed(0)
    base = gemma3().eval()
    folder = write_adapter(tmp_path / "all", base, 1)
    for gone in ("vision_tower.encoder.layers.0.self_attn.q_proj", "language_model.layers.1.self_attn.q_proj"):
        part = Path(shutil.copytree(folder, tmp_path / gone))
        file = part / "adapter_model.safetensors"
        save_file({key: tensor for key, tensor in load_file(file).items() if gone not in key}, file)
        with pytest.raises(AdapterError, match=rf"module 'model\.{gone}': its lora_A is missing"):
            ComposableModel(base).load_adapter(part, "part")


@pytest.mark.slow
def test_the_mapping_of_names_that_a_models_class_carries_is_followed_as_peft_follows_it(base, folders, folder):
    class Renamed(type(base)):
        _checkpoint_conversion_mapping = {"^old": "model"}  # noqa: RUF012 (as transformers 4 declares it)

    renamed = deepcopy(base)
    renamed.__class__ = Renamed
    rename(folder, lambda key: key.replace("base_model.model.model.", "base_model.model.old."))
    expected = logits_of_peft(base, folders["plain"])
    torch.testing.assert_close(logits_of_peft(renamed, folder), expected)
    composes(renamed, folder, expected)


# Experts


def moe() -> Any:
    torch.manual_seed(0)
    settings = {**TEXT, "head_dim": 4, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("targets", [QV, r".*\.layers\.\d\.self_attn\.(q_proj|v_proj)"], ids=str)
def test_an_adapter_of_the_attention_of_a_mixture_of_experts_is_composed(tmp_path, targets):
    base = moe()
    folder = write_adapter(tmp_path / "attention", base, 1)
    edit_config(folder, target_modules=targets)
    composes(base, folder, logits_of_peft(base, folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets",
    [[*QV, "gate_proj", "up_proj", "down_proj"], [*QV, "up_proj"], "all-linear", r".*\.(q_proj|v_proj|down_proj)", QV],
    ids=str,
)
def test_an_adapter_of_experts_that_are_fused_now_is_refused_as_such(tmp_path, targets):
    base = moe()
    folder = write_adapter(tmp_path / "experts", base, 1)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for expert in range(4):
        for name, (d_in, d_out) in {"gate_proj": (16, 8), "up_proj": (16, 8), "down_proj": (8, 16)}.items():
            key = f"base_model.model.model.layers.0.mlp.experts.{expert}.{name}"
            tensors |= {f"{key}.lora_A.weight": torch.ones(4, d_in), f"{key}.lora_B.weight": torch.ones(d_out, 4)}
    save_file(tensors, file)
    edit_config(folder, target_modules=targets)
    for load in (ComposableModel(base).load_adapter, lambda *args: inspect_adapter(*args, base)):
        with pytest.raises(AdapterError, match=r"mixture-of-experts model one by one, and this base holds them fused"):
            load(folder, "experts")


# Settings


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"exclude_modules": ["down_proj"]},
        {"exclude_modules": r".*layers\.0\..*"},
        {"exclude_modules": ["layers.1.mlp.up_proj", "q_proj"], "rank_pattern": {"v_proj": 2}},
        {},
    ],
    ids=str,
)
def test_all_linear_left_in_the_file_with_exclusions_is_read_as_peft_reads_it(base, tmp_path, settings):
    folder = write_adapter(tmp_path / "all", base, 1, target_modules="all-linear", **settings)
    edit_config(folder, target_modules="all-linear", **settings)
    composes(base, folder, logits_of_peft(base, folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [("_from_model_config", True), ("lora_dtype", "float32"), ("merge_weights", True), ("note", "made by me")],
)
def test_keys_that_compute_nothing_are_ignored_with_one_warning(base, folders, folder, key, value):
    edit_config(folder, **{key: value})
    model = ComposableModel(base)
    with pytest.warns(AdapterWarning, match=f"adapter 'odd': .*compute nothing and are ignored: {key}") as warned:
        model.load_adapter(folder, "odd")
    assert len(warned) == 1
    assert [key in note for note in model.adapter_notes("odd")] == [True]
    composes(base, folder, logits_of_peft(base, folders["plain"]))


def test_an_unknown_key_is_refused_with_both_ways_out(base, folder):
    edit_config(folder, my_switch="on")
    with pytest.raises(AdapterError, match=r"'my_switch'; remove this key .* if it has no effect .* upgrade peft"):
        ComposableModel(base).load_adapter(folder, "odd")


def test_a_byte_order_mark_and_whole_ranks_written_as_floats_are_read(base, folders, folder):
    edit_config(folder, r=4.0, rank_pattern={"q_proj": 4.0})
    file = folder / "adapter_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    composes(base, folder, logits_of_peft(base, folders["plain"]))


# Notes for the user


def zero(folder: Path, half: str) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({k: torch.zeros_like(t) if half in k else t for k, t in load_file(file).items()}, file)
    return folder


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_an_adapter_without_effect_is_warned_of_once(base, folder, half):
    zero(folder, half)
    model = ComposableModel(base)
    with pytest.warns(AdapterWarning, match="adapter 'odd': it adds nothing to the base") as warned:
        model.load_adapter(folder, "odd")
    assert len(warned) == 1
    (note,) = model.adapter_notes("odd")
    assert inspect_adapter(folder, "odd").notes == inspect_adapter(folder, "odd", base).notes == (note,)


def test_an_adapter_that_acts_in_one_module_only_is_not_warned_of(base, folder):
    file = folder / "adapter_model.safetensors"
    acting = "layers.1.self_attn.v_proj"
    save_file({k: t if acting in k else torch.zeros_like(t) for k, t in load_file(file).items()}, file)
    model = ComposableModel(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        model.load_adapter(folder, "odd")
    assert model.adapter_notes("odd") == inspect_adapter(folder, "odd", base).notes == ()


@pytest.mark.parametrize(
    ("trained_on", "base_name", "differ"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf", True),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", False),
        ("meta-llama/Llama-2-7b-hf", "/models/llama-2-7b-hf/", False),
        ("C:\\models\\Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", False),
        ("meta-llama/Llama-2-7b-hf", "/hub/models--meta-llama--Llama-2-7b-hf/snapshots/0123abc", False),
        ("meta-llama/Llama-2-7b-hf", "/hub/models--meta-llama--Llama-2-7b-chat-hf/snapshots/0123abc", True),
        ("meta-llama/Llama-2-7b-hf", "", False),
        ("", "meta-llama/Llama-2-7b-hf", False),
        (None, "meta-llama/Llama-2-7b-hf", False),
    ],
)
def test_another_bases_name_is_warned_of(base, folder, trained_on, base_name, differ):
    named = deepcopy(base)
    named.name_or_path = base_name
    edit_config(folder, base_model_name_or_path=trained_on)
    model = ComposableModel(named)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model.load_adapter(folder, "odd")
    notes = model.adapter_notes("odd")
    assert [str(w.message) for w in warned if w.category is AdapterWarning] == [f"adapter 'odd': {n}" for n in notes]
    assert inspect_adapter(folder, "odd", named).notes == notes
    if differ:
        assert len(notes) == 1
        assert all(repr(name) in notes[0] for name in (trained_on, base_name))
    else:
        assert not notes


@pytest.mark.parametrize(
    ("trained_on", "base_name", "written"),
    [
        ("some/chat-model", "some/model", "some/model"),
        ("some/model", "/models/model", "some/model"),
        ("some/model", "", "some/model"),
        (None, "some/model", "some/model"),
    ],
)
@pytest.mark.filterwarnings("ignore::peft_composition.AdapterWarning")
def test_a_saved_composition_names_the_base_that_it_was_made_on(base, folder, trained_on, base_name, written):
    named = deepcopy(base)
    named.name_or_path = base_name
    edit_config(folder, base_model_name_or_path=trained_on)
    model = ComposableModel(named)
    model.load_adapter(folder, "odd")
    model.save_composition(["odd"], [1.0], path=folder.parent / "saved")
    model.load_adapter(folder.parent / "saved", "saved")
    header = inspect_adapter(folder.parent / "saved", "saved")
    assert header.base_model_name_or_path == written
    assert not header.notes


def test_the_notes_of_an_adapter_that_is_not_loaded_are_an_error(base):
    with pytest.raises(AdapterError, match="'nobody': it is not loaded"):
        ComposableModel(base).adapter_notes("nobody")
