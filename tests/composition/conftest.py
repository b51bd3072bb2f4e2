"""Fixtures of the composition tests: one tiny base, and a pool of adapters that differ in every possible setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from composition_cases import Parts, parts_of, tiny_llama, write_adapter
from transformers import LlamaForCausalLM

from peft_composition import ComposableModel

torch.set_num_threads(1)

POOL: dict[str, dict] = {
    "plain": {},
    "alike": {},
    "alpha32": {"lora_alpha": 32},
    "rank2": {"r": 2},
    "rslora": {"use_rslora": True, "lora_alpha": 6},
    "other_targets": {"target_modules": ["k_proj", "down_proj"]},
    "patterns": {
        "rank_pattern": {"q_proj": 6, r"model\.layers\.1\.self_attn\.v_proj": 3},
        "alpha_pattern": {r"layers\.0\..*q_proj": 20},
    },
    "regex": {"target_modules": r".*layers\.1\..*(o_proj|up_proj)"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "one_layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "exclude_modules": ["v_proj"]},
}


@pytest.fixture(scope="session")
def base() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def folders(base: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(root / name, base, seed=10 + i, **settings)
        for i, (name, settings) in enumerate(POOL.items())
    }


@pytest.fixture(scope="session")
def parts(base: LlamaForCausalLM, folders: dict[str, Path]) -> dict[str, Parts]:
    return {name: parts_of(folder, base) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def on_meta() -> LlamaForCausalLM:
    """The tiny base without model weights."""
    with torch.device("meta"):
        return tiny_llama()


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A sound adapter's checkpoint, for a test to change."""
    return Path(shutil.copytree(folders["plain"], tmp_path / "changed"))


@pytest.fixture
def model(base: LlamaForCausalLM, folders: dict[str, Path]) -> ComposableModel:
    """A composable model with the whole pool loaded."""
    composable = ComposableModel(base)
    for name, folder in folders.items():
        composable.load_adapter(folder, name=name)
    return composable
