"""Reading any files as an adapter ends in an adapter or in an `AdapterError`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_composition import AdapterError, ComposableModel, inspect_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS = [
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "init_lora_weights", "task_type",
    "fan_in_fan_out", "base_model_name_or_path", "modules_to_save", "target_parameters",
    "trainable_token_indices", "megatron_config", "layer_replication", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "velora_config", "kasa_config", "use_bdlora", "arrow_config",
    "alora_invocation_tokens", "ensure_weight_tying", "runtime_config", "auto_mapping", "revision",
    "inference_mode", "peft_version", "self", "kwargs", "note", "a key of tomorrow",
]  # fmt: skip
PARTS = [
    "base_model", "model", "layers", "0", "1", "self_attn", "q_proj", "v_proj", "lora_A", "lora_B", "weight", "default",
    "_orig_mod", "module", "lm_head", "embed_tokens", "base_layer", "experts", "lora_embedding_A", "bias", "", "é",
    "\x00", "lora_magnitude_vector",
]  # fmt: skip
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "LORA",
        "q_proj",
        "all-linear",
        "ALL-LINEAR",
        ".*q_proj",
        "(",
        "none",
        "all",
        "CAUSAL_LM",
        "loftq",
        "eva",
        "corda",
        "*",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 4, 8.0, 1e300])
VALUES: Any = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
HEADER_VALUES = VALUES | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F4", "C64", "BOOL", "X"]),
        "shape": st.lists(st.integers(-1, 20) | st.integers(), max_size=3),
        "data_offsets": st.lists(st.integers(0, 4000) | st.integers(), max_size=3),
    }
)
NAMES = st.lists(st.sampled_from(PARTS), max_size=9).map(".".join)
BOUNDED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(folders) -> tuple[bytes, bytes]:
    """The two files of a sound adapter."""
    return (folders["plain"] / CONFIG).read_bytes(), (folders["plain"] / WEIGHTS).read_bytes()


def reads(folder: Path, files: tuple[bytes, bytes], base: Any, on_meta: Any) -> None:
    """Read an adapter of these files by every reading function. Any exception except `AdapterError` is raised."""
    for name, content in zip((CONFIG, WEIGHTS), files, strict=True):
        (folder / name).write_bytes(content)
    loaded = []
    for read in (
        lambda: inspect_adapter(folder, "fuzzed"),
        lambda: inspect_adapter(folder, "fuzzed", on_meta),
        lambda: ComposableModel(base).load_adapter(folder, "fuzzed"),
    ):
        try:
            read()
            loaded.append(True)
        except AdapterError as error:
            assert len(str(error)) < 3000
            loaded.append(False)
    assert loaded[1] or not loaded[2], "loading must not take what the check refuses"
    assert loaded[0] or not loaded[2]


def changed_bytes(content: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    """Write some bytes over others, and cut the end off."""
    changed = bytearray(content)
    for position, new in changes:
        position %= len(changed)
        changed[position : position + len(new)] = new
    return bytes(changed[: len(changed) - cut])


CHANGES = st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3)
CUTS = st.just(0) | st.integers(0, 3000)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::peft_composition.AdapterWarning")
@BOUNDED
@given(changes=st.dictionaries(st.sampled_from(SETTINGS), VALUES, min_size=1, max_size=3))
def test_settings_of_any_value(tmp_path, sound, base, on_meta, changes):
    config = json.dumps({**json.loads(sound[0]), **changes}).encode()
    reads(tmp_path, (config, sound[1]), base, on_meta)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::peft_composition.AdapterWarning")
@BOUNDED
@given(changes=CHANGES, cut=CUTS)
def test_any_bytes_in_the_configuration(tmp_path, sound, base, on_meta, changes, cut):
    reads(tmp_path, (changed_bytes(sound[0], changes, cut), sound[1]), base, on_meta)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::peft_composition.AdapterWarning")
@BOUNDED
@given(changes=CHANGES, cut=CUTS)
def test_any_bytes_in_the_weights(tmp_path, sound, base, on_meta, changes, cut):
    reads(tmp_path, (sound[0], changed_bytes(sound[1], changes, cut)), base, on_meta)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::peft_composition.AdapterWarning")
@BOUNDED
@given(
    renamed=st.dictionaries(st.integers(0, 7), NAMES, max_size=8),
    changes=st.dictionaries(st.integers(0, 7), HEADER_VALUES, max_size=2),
    added=st.dictionaries(NAMES, HEADER_VALUES, max_size=2),
)
def test_headers_of_any_names_and_values(tmp_path, sound, base, on_meta, renamed, changes, added):
    content = sound[1]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = {"__metadata__": header.pop("__metadata__", {})}
    names = sorted(header)
    entries = {renamed.get(i, key): changes.get(i, header[key]) for i, key in enumerate(names)}
    written = json.dumps({**metadata, **entries, **added}).encode()
    reads(tmp_path, (sound[0], struct.pack("<Q", len(written)) + written + content[8 + length :]), base, on_meta)
