"""A broken or hostile file is one `AdapterError` that names the adapter, the file or module, and the reason."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import edit_config, edit_tensors, tiny_llama

from peft_composition import (
    AdapterError,
    ComposableModel,
    CompositionError,
    CompositionWriter,
    check_finite,
    inspect_adapter,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q1 = "model.layers.1.self_attn.q_proj"
KEY = f"base_model.model.{Q1}.lora_A.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 1049\n"


def refused_everywhere(
    base: Any, on_meta: Any, path: Any, *said: str, without_base: bool = True, in_one_text: bool = True
) -> None:
    """Assert the same refusal by loading, by writing, and by the check of the header with and without a base."""
    messages = set()
    calls: list[Callable[[], object]] = [
        lambda: ComposableModel(base).load_adapter(path, "spoilt"),
        lambda: CompositionWriter(on_meta, torch.float32).load_adapter(path, "spoilt"),
        lambda: inspect_adapter(path, "spoilt", base),
        lambda: inspect_adapter(path, "spoilt", on_meta),
    ]
    for call in calls:
        with pytest.raises(AdapterError) as caught:
            call()
        messages.add(str(caught.value))
    assert len(messages) == 1 or not in_one_text, messages
    if without_base:
        with pytest.raises(AdapterError) as caught:
            inspect_adapter(path, "spoilt")
        messages.add(str(caught.value))
    for message in messages:
        for words in ("adapter 'spoilt'", *said):
            assert words in message
        assert len(message) < 2000
        assert "\n" not in message.replace(str(path), "")


# Files that are something else


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def replaced_by_pipe(name: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def replaced_by_link(name: str, target: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return replace


def replaced_by_folder(name: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (write(WEIGHTS, LFS.encode()), (WEIGHTS, "is a Git LFS pointer", "git lfs pull")),
        (write(CONFIG, LFS.encode()), (CONFIG, "is a Git LFS pointer", "git lfs pull")),
        (write(WEIGHTS, b"<!DOCTYPE html><html>" + b" " * 99), (WEIGHTS, "is a web page")),
        (write(WEIGHTS, b"PK\x03\x04" + b"\0" * 99), (WEIGHTS, "zip archive or pickled")),
        (write(WEIGHTS, b""), (WEIGHTS, "is empty")),
        (write(CONFIG, b""), (CONFIG, "not readable", "is empty")),
        (replaced_by_pipe(WEIGHTS), (WEIGHTS, "not a regular file")),
        (replaced_by_pipe(CONFIG), (CONFIG, "not a regular file")),
        (replaced_by_link(WEIGHTS, "/dev/zero"), (WEIGHTS, "not a regular file")),
        (replaced_by_link(CONFIG, "/dev/zero"), (CONFIG, "not a regular file")),
        (replaced_by_link(WEIGHTS, WEIGHTS), (WEIGHTS, "cannot be read")),
        (replaced_by_link(CONFIG, "nowhere"), (f"no {CONFIG}",)),
        (replaced_by_folder(WEIGHTS), (WEIGHTS, "not a regular file")),
    ],
    ids=[
        "LFS weights", "LFS config", "web page", "zip", "empty weights", "empty config", "pipe weights", "pipe config",
        "device weights", "device config", "link to itself", "dangling link", "folder",
    ],
)  # fmt: skip
def test_a_file_that_is_something_else(base, on_meta, folder, spoil, said):
    spoil(folder)
    refused_everywhere(base, on_meta, folder, *said)


@pytest.mark.parametrize(
    "path", ["", "a\0b", "x" * 5000, "~nosuchuser-at-all/adapter", "/dev/null", "\udc80", "a/b/c", "../" * 2000]
)
def test_a_path_that_is_none(base, on_meta, path):
    refused_everywhere(base, on_meta, path, "give the folder of a PEFT checkpoint")


def test_the_path_of_a_file_of_the_checkpoint_is_answered_with_its_folder(base, on_meta, folder):
    refused_everywhere(base, on_meta, folder / WEIGHTS, "is no folder", f"such as '{folder}'")


def test_a_trainers_folder_is_answered_with_the_name_of_its_last_checkpoint(base, on_meta, folder, tmp_path):
    outer = tmp_path / "outer"
    for name in ("checkpoint-900", "checkpoint-1000", "checkpoint-20"):
        shutil.copytree(folder, outer / name)
    refused_everywhere(base, on_meta, outer, CONFIG, "'checkpoint-1000'", "2 others")
    shutil.rmtree(outer / "checkpoint-900")
    shutil.rmtree(outer / "checkpoint-20")
    refused_everywhere(base, on_meta, outer, CONFIG, "sub-folder 'checkpoint-1000' does; give that folder")


def test_a_whole_model_is_said_to_be_one(base, on_meta, tmp_path):
    base.save_pretrained(tmp_path / "model")
    refused_everywhere(base, on_meta, tmp_path / "model", "holds a whole model")


def test_weights_under_another_name_are_named(base, on_meta, folder):
    (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00001.safetensors")
    refused_everywhere(base, on_meta, folder, f"no {WEIGHTS}", "'adapter_model-00001-of-00001.safetensors' is not read")


# adapter_config.json


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"peft_type": "LORA", "r": ' + "9" * 5000 + "}", "not readable JSON"),
        ('{"peft_type": "LORA", "r": 4, "r": 8}', "the key 'r' is given twice"),
        ('{"peft_type": "LORA", "rank_pattern": {"q": 4, "q": 4}}', "the key 'q' is given twice"),
        ("null", "must hold a JSON object"),
        ('"LORA"', "must hold a JSON object"),
        ("{}", "peft_type is None"),
        ('{"peft_type": ["LORA"]}', "peft_type is ['LORA']"),
        ('{"peft_type": "LORA"} x', "not readable JSON"),
        ('{"peft_type": "LORA", "self": 1}', "names no target_modules"),
        (" " * (17 * 2**20), "larger than"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else value,
)
def test_json_of_another_shape_or_beyond_any_limit(base, on_meta, folder, content, said):
    (folder / CONFIG).write_text(content)
    refused_everywhere(base, on_meta, folder, said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank_pattern": 5}, "'rank_pattern' in adapter_config.json must be an object"),
        ({"alpha_pattern": ["q_proj"]}, "'alpha_pattern' in adapter_config.json must be an object"),
        ({"target_modules": [None]}, "'target_modules' in adapter_config.json must be a text or a list of names"),
        ({"target_modules": {"q_proj": 1}}, "'target_modules'"),
        ({"target_modules": 5}, "'target_modules'"),
        ({"target_modules": [["q_proj"]]}, "'target_modules'"),
        ({"target_modules": [""]}, "'target_modules'"),
        ({"target_modules": []}, "names no target_modules"),
        ({"exclude_modules": True}, "'exclude_modules'"),
        ({"layers_to_transform": "all"}, "'layers_to_transform'"),
        ({"layers_to_transform": [0.5]}, "'layers_to_transform'"),
        ({"layers_pattern": 3}, "'layers_pattern'"),
        ({"use_rslora": "yes"}, "'use_rslora' in adapter_config.json must be true or false, not 'yes'"),
        ({"use_rslora": 1}, "'use_rslora'"),
        ({"use_dora": "no"}, "'use_dora'"),
        ({"bias": None}, "'bias'"),
        ({"init_lora_weights": 3}, "'init_lora_weights'"),
        ({"base_model_name_or_path": 7}, "'base_model_name_or_path'"),
        ({"task_type": "SOMETHING"}, "PEFT cannot use"),
        ({"task_type": "\x1b[31mred" * 1000}, "PEFT cannot use"),
        ({"velora_config": 3}, "PEFT cannot use"),
        ({"layers_pattern": "layers"}, "PEFT cannot use"),
        ({"peft_type": "X" * 10**6}, "peft_type"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_of_another_type(base, on_meta, folder, settings, said):
    refused_everywhere(base, on_meta, edit_config(folder, **settings), said)


@pytest.mark.parametrize("alpha", [0, -8, 10**400, 1e30, 1e-300, math.nan, math.inf, "8", True, None, [8]], ids=repr)
@pytest.mark.parametrize("where", ["lora_alpha", "alpha_pattern"])
def test_an_alpha_that_makes_no_usable_scaling(base, on_meta, folder, alpha, where):
    edit_config(folder, **{where: alpha if where == "lora_alpha" else {"q_proj": alpha}})
    refused_everywhere(base, on_meta, folder, "module 'model.layers.0.self_attn.q_proj'", "its alpha")


@pytest.mark.parametrize("rank", [0, -1, 4.5, 1e300, 10**400, math.nan, math.inf, "4", True, None, [4]], ids=repr)
@pytest.mark.parametrize("where", ["r", "rank_pattern"])
def test_a_rank_that_is_none(base, on_meta, folder, rank, where):
    edit_config(folder, **{where: rank if where == "r" else {"q_proj": rank}})
    refused_everywhere(base, on_meta, folder, "module 'model.layers.0.self_attn.q_proj'", "its rank must be")


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"]
)
@pytest.mark.parametrize("pattern", ["([", "(" * 4000 + ")" * 4000, "a{99999999999999999999}", "x" * 200_000])
def test_a_pattern_that_is_none(base, on_meta, folder, where, pattern):
    settings: dict[str, Any] = {where: {pattern: 4} if where.endswith("k_pattern") or "alpha" in where else pattern}
    if where == "layers_pattern":
        settings["layers_to_transform"] = [0]
    edit_config(folder, **settings)
    refused_everywhere(base, on_meta, folder, "regular expression" if len(pattern) < 100_000 else "characters; at most")


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"]
)
def test_a_catastrophic_pattern_is_answered(base, folder, where):
    pattern = r"(.*)(.*)(.*)(.*)(\w|\.)+(\w|\.)+[A-Z]"  # fits no name; `re` would try for years
    table = where in ("rank_pattern", "alpha_pattern")
    edit_config(folder, **{where: {pattern: 99} if table else pattern}, layers_to_transform=None)
    if where == "layers_pattern":
        edit_config(folder, layers_to_transform=[0])
    model = ComposableModel(base)
    if where in ("target_modules", "layers_pattern"):
        with pytest.raises(AdapterError, match="this base has no such module"):
            model.load_adapter(folder, "slow")
    else:
        model.load_adapter(folder, "slow")


# adapter_model.safetensors


def edited_header(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of the header, with a right length before it."""
    file = folder / WEIGHTS
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit(header)
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])


def _overlap(header: dict[str, Any]) -> None:
    header[KEY]["data_offsets"] = header[KEY.replace("lora_A", "lora_B")]["data_offsets"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-10]),
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:100]),
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"more"),
        lambda f: (f / WEIGHTS).write_bytes(b"\x05"),
        lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 8 + b"{" * 100),
        lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{}"),
        lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
        lambda f: edited_header(f, _overlap),
        lambda f: edited_header(f, lambda h: h[KEY].update(data_offsets=[0, 2**62])),
        lambda f: edited_header(f, lambda h: h[KEY].update(data_offsets=[64, 0])),
        lambda f: edited_header(f, lambda h: h[KEY].update(shape=[4, -16])),
        lambda f: edited_header(f, lambda h: h[KEY].update(shape=[2**40, 2**40])),
        lambda f: edited_header(f, lambda h: h[KEY].update(dtype="F31")),
        lambda f: edited_header(f, lambda h: h[KEY].pop("dtype")),
        lambda f: edited_header(f, lambda h: h.update({KEY: None})),
    ],
    ids=[
        "cut", "cut in header", "longer", "one byte", "huge length", "terabyte length", "nested", "overlap", "beyond",
        "backwards", "negative", "huge shape", "dtype", "no dtype", "null",
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_true(base, on_meta, folder, spoil):
    spoil(folder)
    # If two tensors overlap, the message names one of the two; the choice differs from call to call.
    refused_everywhere(base, on_meta, folder, WEIGHTS, "not a readable safetensors file", in_one_text=False)


@pytest.mark.parametrize(
    ("edit", "said", "without_base"),
    [
        (lambda t: t.update({k: torch.zeros(0) for k in t}), ("is empty", "DeepSpeed ZeRO-3", "q_proj"), True),
        (lambda t: t.update({KEY: torch.zeros(4, 0)}), ("is empty", "DeepSpeed ZeRO-3", Q1), True),
        (lambda t: t.update({KEY: torch.tensor(1.0)}), ("is empty", Q1), True),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(0)}),
            ("lm_head.weight' is empty", "DeepSpeed ZeRO-3", "module 'lm_head'"),
            False,
        ),
        (lambda t: t.update({KEY: torch.ones(64)}), ("shape [64]", Q1), True),
        (lambda t: t.update({KEY: torch.ones(4, 4, 4)}), ("shape [4, 4, 4]", Q1), True),
        (lambda t: t.update({KEY: torch.ones(3, 16)}), ("shape [3, 16]", "[4, ", Q1), True),
        (lambda t: t.update({KEY: torch.ones(4, 15)}), ("shape [4, 15]", "[4, 16]", Q1), False),
        (lambda t: t.update({KEY: t[KEY].to(torch.int8)}), ("int8", Q1), True),
        (lambda t: t.update({KEY: t[KEY].to(torch.float8_e4m3fn)}), ("F8_E4M3", Q1), True),
        (lambda t: t.pop(KEY), ("lora_A is missing", Q1), True),
        (lambda t: t.clear(), ("its file holds no tensors",), True),
        (
            lambda t: [t.update({k.replace(".lora_A.", ".lora_down."): t.pop(k)}) for k in sorted(t) if "lora_A" in k]
            + [t.update({k.replace(".lora_B.", ".lora_up."): t.pop(k)}) for k in sorted(t) if "lora_B" in k],
            ("lora_down.weight'", "lora_A.weight", "call"),
            True,
        ),
        (
            lambda t: [t.update({k.replace("model.layers", "transformer.h"): t.pop(k)}) for k in sorted(t)],
            ("its tensors are called '", "transformer.h.0", f"looked for 'base_model.model.{Q1.replace('1', '0')}"),
            False,
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}),
            ("adapts an Embedding", "module 'model.embed_tokens'"),
            True,
        ),
        (lambda t: t.update({f"{KEY}_scale": torch.ones(4)}), ("no part of the plain LoRA",), True),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(50, 16)}),
            ("vocabulary of 50 tokens", "this base has 48", "module 'lm_head'"),
            False,
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(50, 16)}),
            ("vocabulary of 50 tokens", "this base has 48", "module 'model.embed_tokens'"),
            False,
        ),
    ],
    ids=[
        "all empty", "one empty", "scalar", "empty head", "flat", "3-D", "rank", "width", "int8", "float8", "missing",
        "none", "down", "other names", "embedding", "unknown", "resized head", "resized embedding",
    ],
)  # fmt: skip
def test_tensors_that_the_header_alone_shows_to_be_wrong(base, on_meta, folder, edit, said, without_base):
    refused_everywhere(base, on_meta, edit_tensors(folder, edit), *said, without_base=without_base)


def test_names_with_control_characters_are_escaped_and_long_ones_cut(base, on_meta, folder):
    key = "\x1b[31m" + "x" * 10_000 + "\n.lora_A.weight"
    edit_tensors(folder, lambda tensors: tensors.update({key: torch.ones(4, 16)}))
    refused_everywhere(base, on_meta, folder, "\\x1b[31mxxx", without_base=False)


def test_embeddings_that_were_trained_along_are_said_to_be(base, folder):
    edit_tensors(folder, lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(48, 16)}))
    said = r"module 'lm_head': it holds 'base_model.model.lm_head.weight', whose numbers are not the base's"
    with pytest.raises(AdapterError, match=said):
        ComposableModel(base).load_adapter(folder, "spoilt")


def test_numbers_that_are_none_are_named_with_their_module(base, on_meta, folder):
    edit_tensors(folder, lambda tensors: tensors[KEY][0, 0].fill_(math.nan))
    for load in (ComposableModel(base).load_adapter, CompositionWriter(on_meta, torch.float32).load_adapter):
        with pytest.raises(AdapterError, match=f"'spoilt', module '{Q1}': its lora_A holds NaN or infinity"):
            load(folder, "spoilt")
    inspect_adapter(folder, "spoilt", base)  # the header shows no numbers


# The check of the header


@pytest.mark.slow
def test_the_check_of_the_header_says_what_loading_would(base, on_meta, folders):
    for name, folder in folders.items():
        model = ComposableModel(base)
        model.load_adapter(folder, name)
        with_base, without = inspect_adapter(folder, name, on_meta), inspect_adapter(folder, name)
        assert with_base == inspect_adapter(folder, name, base)
        assert with_base.modules == model._residency.headers[name].modules
        assert without.modules == with_base.modules, "these files have the names of the base"
        assert not with_base.notes


def test_the_check_of_the_header_reads_no_weights_of_a_base_or_an_adapter(on_meta, folder):
    edit_tensors(folder, lambda tensors: tensors[KEY].fill_(math.nan))
    assert inspect_adapter(folder, "damaged", on_meta).modules[Q1].rank == 4


# The base


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_with_nan_is_named_by_its_first_such_parameter(base, value, dtype):
    damaged = deepcopy(base).to(dtype)
    check_finite(damaged)
    for name in (f"{Q1}.weight", "model.norm.weight"):
        with torch.no_grad():
            damaged.get_parameter(name).flatten()[3] = value
    with pytest.raises(CompositionError, match=rf"parameter '{Q1}\.weight' holds NaN or infinity"):
        check_finite(damaged)


def test_a_base_without_weights_or_with_quantised_ones_passes(on_meta):
    check_finite(on_meta)
    check_finite(torch.ao.quantization.quantize_dynamic(tiny_llama(), {torch.nn.Linear}, dtype=torch.qint8))
