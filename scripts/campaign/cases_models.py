"""Bad adapters, bases and encoders."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from campaign.inputs import RUN, Case, Spoil, change, fields, put, put_json, replaced_by, together, without

ADAPTER = "adapters/movie_review"
CONFIG, WEIGHTS = f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors"
BASE, BASE_WEIGHTS = "base/config.json", "base/model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
HANGS = "(x+x+)+y|(.*)*(.*)*(.*)*(.*)*z"
"""A regular expression that takes longer than the age of the universe on the names of modules."""
MIXTURE = (*RUN[:-1], "mixture")
DOCTOR = ("doctor", "--profile", "{b}/mine.yaml", "--results", "{b}/results")

CONFIG_FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "adapter_config.json"),
    "broken": ('{"r": 8,', "adapter_config.json"),
    "null": ("null", "adapter_config.json"),
    "a list": ("[]", "adapter_config.json"),
    "a number": ("5", "adapter_config.json"),
    "a Git LFS pointer": (LFS, "Git LFS"),
    "not UTF-8": (b'{"r": 8, "note": "M\xfcller"}', "adapter_config.json"),
    "UTF-16": ('{"r": 8}'.encode("utf-16"), "adapter_config.json"),
    "deep": ('{"a":' * 100_000 + "1" + "}" * 100_000, "adapter_config.json"),
    "5,000 digits": ('{"r": ' + "7" * 5000 + "}", "adapter_config.json"),
    "an empty object": ("{}", "movie_review"),
    "large": ('{"note": "' + "x" * 20_000_000 + '"}', "movie_review"),
}
CONFIG_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "r 0": ({"r": 0}, "r"),
    "r -8": ({"r": -8}, "r"),
    "r null": ({"r": None}, "r"),
    "r a text": ({"r": "eight"}, "r"),
    "r 1.5": ({"r": 1.5}, "r"),
    "r true": ({"r": True}, "r"),
    "r 10^30": ({"r": 10**30}, "r"),
    "r another": ({"r": 4}, "lora_A|rank|shape"),
    "lora_alpha null": ({"lora_alpha": None}, "alpha must be"),
    "lora_alpha a text": ({"lora_alpha": "big"}, "alpha must be"),
    "lora_alpha NaN": ({"lora_alpha": float("nan")}, "alpha must be"),
    "lora_alpha infinite": ({"lora_alpha": float("inf")}, "alpha must be"),
    "lora_alpha of 400 digits": ({"lora_alpha": 10**400}, "alpha must be"),
    "lora_alpha a list": ({"lora_alpha": [16]}, "alpha must be"),
    "target_modules null": ({"target_modules": None}, "target_modules"),
    "target_modules [null]": ({"target_modules": [None]}, "target_modules"),
    "target_modules 5": ({"target_modules": 5}, "target_modules"),
    "target_modules that are not there": ({"target_modules": ["query"]}, "movie_review"),
    "target_modules no expression": ({"target_modules": "("}, "target_modules"),
    "target_modules that hang": ({"target_modules": HANGS}, "target_modules|movie_review"),
    "exclude_modules that hang": ({"target_modules": "all-linear", "exclude_modules": HANGS}, "movie_review|exclude"),
    "rank_pattern 5": ({"rank_pattern": 5}, "rank_pattern"),
    "rank_pattern of texts": ({"rank_pattern": {"q_proj": "x"}}, "rank must be"),
    "rank_pattern 0": ({"rank_pattern": {"q_proj": 0}}, "rank must be"),
    "rank_pattern that is no expression": ({"rank_pattern": {"(": 4}}, "regular expression"),
    "alpha_pattern a list": ({"alpha_pattern": [1]}, "alpha_pattern"),
    "alpha_pattern NaN": ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha must be"),
    "alpha_pattern of 400 digits": ({"alpha_pattern": {"q_proj": 10**400}}, "alpha must be"),
    "layers_to_transform a text": ({"layers_to_transform": "all"}, "layers_to_transform"),
    "layers_to_transform 99": ({"layers_to_transform": [99]}, "movie_review"),
    "layers_pattern no expression": ({"layers_to_transform": [0], "layers_pattern": "("}, "layers_pattern"),
    "use_rslora a text": ({"use_rslora": "yes"}, "use_rslora"),
    "use_dora": ({"use_dora": True}, "DoRA"),
    "bias all": ({"bias": "all"}, "bias"),
    "bias 5": ({"bias": 5}, "bias"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "peft_type IA3": ({"peft_type": "IA3"}, "IA3"),
    "peft_type null": ({"peft_type": None}, "peft_type"),
    "peft_type a list": ({"peft_type": ["LORA"]}, "peft_type"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out|movie_review"),
    "use_bdlora": ({"use_bdlora": {"a": 1}}, "bdlora|movie_review"),
    "arrow_config": ({"arrow_config": {"top_k": 1}}, "Arrow"),
    "megatron_config": ({"megatron_config": {"a": 1}}, "Megatron"),
    "layer_replication": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "target_parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "trainable_token_indices": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "a key of tomorrow": ({"use_tomorrow": True}, "use_tomorrow"),
}


ACCEPTED = ("exclude_modules that hang", "fan_in_fan_out")
"""Settings that change nothing here, in PEFT as well: the adapter is used."""


def header(content: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header, which may claim another length."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
WEIGHT_FILES: dict[str, bytes | str] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a Git LFS pointer": LFS,
    "no header": header(b"", length=0),
    "a header of 2^63 bytes": header(b"{}", length=2**63 - 1),
    "a header that is no JSON": header(b"{broken"),
    "a header that is not UTF-8": header(b'{"\xff": 1}'),
    "a header that is a list": header([]),
    "a deep header": header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "offsets beyond the end": header({"a": {**ENTRY, "data_offsets": [0, 1 << 40]}}, bytes(16)),
    "offsets in the wrong order": header({"a": {**ENTRY, "data_offsets": [16, 0]}}, bytes(16)),
    "tensors that overlap": header({"a": ENTRY, "b": ENTRY}, bytes(16)),
    "a shape of terabytes": header({"a": {**ENTRY, "shape": [1 << 40, 1 << 20]}}, bytes(16)),
    "a negative shape": header({"a": {**ENTRY, "shape": [-1, 2]}}, bytes(16)),
    "an unknown dtype": header({"a": {**ENTRY, "dtype": "F3"}}, bytes(16)),
    "no tensors": header({}),
    "a tensor of another kind": header({"lora.weight": ENTRY}, bytes(16)),
    "a pickle": b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.",
    "a zip": b"PK\x03\x04" + bytes(60),
    "data cut off": header({"a": ENTRY}, bytes(9)),
}


def tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]) -> Spoil:
    """Change the tensors of a safetensors file."""

    def spoil(folder: Path) -> None:
        content = load_file(folder / name)
        edited = edit(content)
        made = content if edited is None else edited
        save_file(
            {key: value.clone(memory_format=torch.contiguous_format) for key, value in made.items()},
            folder / name,
            {"format": "pt"},
        )

    return spoil


def first(content: dict[str, torch.Tensor], part: str) -> str:
    """The first tensor whose name has this part."""
    return next(name for name in sorted(content) if part in name)


def one(part: str, edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[dict[str, torch.Tensor]], None]:
    """Change or, by None, remove the first tensor whose name has this part."""

    def change_one(content: dict[str, torch.Tensor]) -> None:
        name = first(content, part)
        edited = edit(content[name])
        if edited is None:
            del content[name]
        else:
            content[name] = edited

    return change_one


WEIGHT_EDITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None], str]] = {
    "lora_A missing": (one("lora_A", lambda t: None), "lora_A"),
    "lora_B missing": (one("lora_B", lambda t: None), "lora_B"),
    "NaN": (one("lora_B", lambda t: t * float("nan")), "NaN"),
    "infinite": (one("lora_B", lambda t: t + float("inf")), "infinite|NaN"),
    "another width": (one("lora_A", lambda t: t[:, :-1]), "model.layers"),
    "another rank": (one("lora_A", lambda t: t[:-1]), "model.layers"),
    "three dimensions": (one("lora_A", lambda t: t[None]), "model.layers"),
    "integers": (one("lora_A", lambda t: t.to(torch.int32)), "model.layers|dtype|int32"),
    "truth values": (one("lora_A", lambda t: t > 0), "model.layers|dtype|bool"),
    "complex numbers": (one("lora_A", lambda t: t.to(torch.complex64)), "model.layers|dtype|complex"),
    "empty tensors": (one("lora_A", lambda t: t[:0]), "empty|model.layers"),
    "an extra tensor": (lambda c: {**c, "extra": torch.zeros(2)}, "extra"),
    "an embedding": (lambda c: {**c, "base_model.model.model.embed_tokens.weight": torch.ones(566, 128)}, "embed"),
    "names of another family": (
        lambda c: {name.replace("self_attn", "attention"): tensor for name, tensor in c.items()}, "movie_review",
    ),
    "a layer too many": (
        lambda c: {**c, **{n.replace("layers.0.", "layers.9."): t for n, t in c.items() if "layers.0." in n}},
        "layers.9|movie_review",
    ),
    "magnitudes of DoRA": (
        lambda c: {**c, first(c, "lora_A").replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(128)},
        "lora_magnitude_vector|DoRA",
    ),
}  # fmt: skip


def adapters() -> Iterator[Case]:
    """Bad configurations and weights of adapters."""
    for name, (content, says) in CONFIG_FILES.items():
        yield Case("adapter", f"configuration {name}", put(CONFIG, content), ("movie_review", says))
    for name, (changes, says) in CONFIG_FIELDS.items():
        if name in ACCEPTED:
            yield Case("adapter", name, fields(CONFIG, **changes), (), statuses=(0,))
        else:
            yield Case("adapter", name, fields(CONFIG, **changes), ("movie_review", says))
    for name, bytes_ in WEIGHT_FILES.items():
        yield Case("adapter", f"weights: {name}", put(WEIGHTS, bytes_), ("movie_review",))
    for name, (edit, says) in WEIGHT_EDITS.items():
        yield Case("adapter", f"weights: {name}", tensors(WEIGHTS, edit), ("movie_review", says))
    for part, file in (("configuration", CONFIG), ("weights", WEIGHTS)):
        for kind in ("nothing", "folder", "dangling link", "circle of links", "/dev/null", "pipe", "/dev/zero"):
            yield Case("adapter", f"{part}: {kind}", replaced_by(file, kind), ("movie_review",))
    yield Case("adapter", "folder: nothing", replaced_by(ADAPTER, "nothing"), ("movie_review",))
    yield Case("adapter", "folder: circle of links", replaced_by(ADAPTER, "circle of links"), ("movie_review",))
    yield Case("adapter", "weights only pickled", _pickled, ("movie_review", "safetensors"))
    yield Case("adapter", "a checkpoint in its folder", _in_checkpoint, ("movie_review", "checkpoint-500"))
    yield Case("adapter", "two bad ones", _two_bad, ("movie_review", "passive"))
    yield Case("adapter", "doctor: two bad ones", _two_bad, ("movie_review", "passive"), DOCTOR)
    for name in ("r a text", "target_modules that hang", "rank_pattern 5", "use_dora", "peft_type IA3"):
        changes, says = CONFIG_FIELDS[name]
        yield Case("adapter", f"doctor: {name}", fields(CONFIG, **changes), ("movie_review", says), DOCTOR)
    for name in ("a Git LFS pointer", "a header of 2^63 bytes", "a deep header", "tensors that overlap"):
        yield Case("adapter", f"doctor: {name}", put(WEIGHTS, WEIGHT_FILES[name]), ("movie_review",), DOCTOR)


BASE_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "hidden_size 0": ({"hidden_size": 0}, ""),
    "hidden_size a text": ({"hidden_size": "wide"}, ""),
    "no heads": ({"num_attention_heads": 0}, ""),
    "a vocabulary of 5": ({"vocab_size": 5}, ""),
    "a billion layers": ({"num_hidden_layers": 10**9}, ""),
    "negative layers": ({"num_hidden_layers": -1}, ""),
    "an unknown model_type": ({"model_type": "tomorrow"}, "tomorrow|model_type"),
    "model_type a list": ({"model_type": ["llama"]}, ""),
    "no model_type": ({"model_type": None}, ""),
    "code of its own": (
        {"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}, "model_type": "mine"}, "code",
    ),
    "rope_parameters 5": ({"rope_parameters": 5}, ""),
    "dtype unknown": ({"dtype": "float1"}, ""),
    "hidden_act unknown": ({"hidden_act": "tomorrow"}, ""),
    "another width": ({"hidden_size": 64, "head_dim": 16}, ""),
}  # fmt: skip


def bases() -> Iterator[Case]:
    """Bad base models and tokenizers."""
    copied: dict[str, Any] = {"copies": ("base",)}
    for name, content in {"empty": "", "broken": '{"a', "null": "null", "a list": "[]", "LFS": LFS}.items():
        yield Case("base", f"config.json {name}", put(BASE, content), ("base",), **copied)
    yield Case("base", "config.json deep", put(BASE, '{"a":' * 50_000 + "1" + "}" * 50_000), ("base",), **copied)
    for name, (changes, says) in BASE_FIELDS.items():
        yield Case("base", name, fields(BASE, **changes), ("base", says), **copied)
    for name, bytes_ in WEIGHT_FILES.items():
        if name in ("empty", "a Git LFS pointer", "a header of 2^63 bytes", "no tensors", "data cut off", "a pickle"):
            yield Case("base", f"weights: {name}", put(BASE_WEIGHTS, bytes_), ("base",), **copied)
    yield Case("base", "NaN", tensors(BASE_WEIGHTS, one("down_proj", lambda t: t * float("nan"))), ("NaN",), **copied)
    infinite = one("layers.3.mlp.up_proj", lambda t: t + float("inf"))
    yield Case("base", "infinite", tensors(BASE_WEIGHTS, infinite), ("infinite|NaN",), **copied)
    cut = one("layers.2.self_attn.q_proj", lambda t: t[:-1])
    yield Case("base", "a tensor of another shape", tensors(BASE_WEIGHTS, cut), ("base",), **copied)
    lacking = one("layers.2.self_attn.q_proj", lambda t: None)
    yield Case("base", "a tensor missing", tensors(BASE_WEIGHTS, lacking), ("base", "q_proj"), **copied)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        yield Case("base", f"no {name}", replaced_by(f"base/{name}", "nothing"), ("base",), **copied)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for what, content in {"empty": "", "broken": '{"a', "null": "null", "a list": "[]", "LFS": LFS}.items():
            if (name, what) != ("tokenizer_config.json", "null"):
                yield Case("base", f"{name} {what}", put(f"base/{name}", content), ("base",), **copied)
    yield Case("base", "folder: nothing", replaced_by("base", "nothing"), ("base",))
    yield Case("base", "folder: a file", together(replaced_by("base", "nothing"), put("base", "x")), ("base",))
    yield Case("base", "doctor: config.json null", put(BASE, "null"), ("base",), DOCTOR, copies=("base",))
    yield Case("base", "doctor: heads 0", fields(BASE, num_attention_heads=0), ("base",), DOCTOR, copies=("base",))


def encoders() -> Iterator[Case]:
    """Bad encoders, under a method that retrieves."""
    copied: dict[str, Any] = {"command": MIXTURE, "copies": ("encoder",)}
    for file in ("config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json", "2_Dense/config.json"):
        contents = {"empty": "", "null": "null", "a number": "5", "LFS": LFS}
        for what, content in contents.items():
            yield Case("encoder", f"{file} {what}", put(f"encoder/{file}", content), ("encoder",), **copied)
    for name in ("empty", "a Git LFS pointer", "a header of 2^63 bytes", "no tensors"):
        spoil = put("encoder/model.safetensors", WEIGHT_FILES[name])
        yield Case("encoder", f"weights: {name}", spoil, ("encoder",), **copied)
    broken = tensors("encoder/model.safetensors", lambda c: {name: tensor * float("nan") for name, tensor in c.items()})
    yield Case("encoder", "NaN", broken, ("encoder", "NaN|finite"), **copied)
    dense = "encoder/2_Dense/model.safetensors"
    zero = tensors(dense, lambda c: {name: tensor * 0 for name, tensor in c.items()})
    yield Case("encoder", "a last layer of zeros", zero, ("encoder|embedding", "zero|same|alike"), **copied)
    modules: dict[str, Any] = {
        "no list": {"a": 1}, "an empty list": [], "of numbers": [1], "without a type": [{"idx": 0, "path": ""}],
        "of code elsewhere": [{"idx": 0, "name": "0", "path": "", "type": "os.system"}],
        "of a module that is not there": [{"idx": 0, "name": "0", "path": "", "type": "nowhere.Module"}],
        "type a number": [{"idx": 0, "name": "0", "path": "", "type": 5}],
    }  # fmt: skip
    for what, content in modules.items():
        yield Case("encoder", f"modules.json {what}", put_json("encoder/modules.json", content), ("encoder",), **copied)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "2_Dense/config.json"):
        yield Case("encoder", f"no {name}", replaced_by(f"encoder/{name}", "nothing"), ("encoder",), **copied)
    yield Case("encoder", "folder: nothing", replaced_by("encoder", "nothing"), ("encoder",), MIXTURE)
    narrow = fields("encoder/2_Dense/config.json", in_features=3)
    yield Case("encoder", "a dense layer of another width", narrow, ("encoder",), **copied)
    yield Case("encoder", "hidden_size 0", fields("encoder/config.json", hidden_size=0), ("encoder",), **copied)
    yield Case("encoder", "no vocab_size", without("encoder/config.json", "vocab_size"), ("encoder",), **copied)


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / ADAPTER / "adapter_model.bin")


def _in_checkpoint(folder: Path) -> None:
    shutil.move(folder / ADAPTER, folder / "moved")
    (folder / ADAPTER).mkdir()
    shutil.move(folder / "moved", folder / ADAPTER / "checkpoint-500")


def _two_bad(folder: Path) -> None:
    fields(CONFIG, use_dora=True)(folder)
    change("adapters/passive/adapter_config.json", lambda config: {**config, "r": 0})(folder)
