"""Dense matrices against the recorded outputs of the original, and against adapters that the original gets wrong."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from peft_composition import AdapterError, ComposableModel

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden cases are not beside this checkout")
NAMES = [f"lora{i}" for i in range(6)]
ODD_SCALING = {"alpha8": 8 / 8, "alpha32": 32 / 8, "rank4": 8 / 4, "qonly": 2, "qk": 2, "rslora": 16 / 8**0.5}


@pytest.fixture(scope="module")
def golden() -> ComposableModel:
    model = ComposableModel(LlamaForCausalLM.from_pretrained(GOLDEN / "model", dtype=torch.float32).eval())
    for name in NAMES:
        model.load_adapter(GOLDEN / "adapters" / "qv" / name, name)
    for name in ODD_SCALING:
        model.load_adapter(GOLDEN / "adapters" / "odd" / name, name)
    return model


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "inputs.npz").items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "expected_fp32.npz").items()}


def weights_of(case: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    if case.endswith("top3"):
        return inputs["mapping_top3"].float() / 3
    return inputs["mapping_selection"].float() * (case != "base")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("base", "mixture"),
        ("fusion_top3", "fusion"),
        ("mixture_top3", "mixture"),
        ("selection", "fusion"),
        ("best_selection", "mixture"),
    ],
)
def test_recorded_logits_and_tokens_are_met(golden, inputs, expected, case, mode):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad(), golden.composed(NAMES, weights_of(case, inputs), mode):
        logits = golden(input_ids=ids, attention_mask=mask, position_ids=inputs["position_ids_hf"]).logits
        tokens = golden.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=False
        )
    difference = ((logits - expected[f"{case}_logits"]) * mask[:, :, None]).abs().max().item()
    print(f"{case}: max |difference| {difference:.2e}")
    assert difference < 1e-5
    assert torch.equal(tokens, expected[f"{case}_tokens"])


def raw(name: str, layer: int, module: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    folder = GOLDEN / "adapters" / ("qv" if name in NAMES else "odd") / name
    tensors = load_file(folder / "adapter_model.safetensors")
    key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
    if f"{key}.lora_A.weight" not in tensors:
        return None
    return tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_adapters_that_the_original_gets_wrong(golden, inputs, mode):
    names = [*ODD_SCALING, "lora0"]
    scaling = {**ODD_SCALING, "lora0": 2.0}
    weights = torch.tensor(
        [
            [1 / 7] * 7,
            [0.5, 0.5, 0, 0, 0, 0, 0],
            [0, 0, 0.5, 0, 0, 0, 0.5],
            [0, 0, 0, 0.4, 0.3, 0, 0.3],
            [0, 0.2, 0, 0, 0, 0.8, 0],
        ]
    )
    ids = inputs["input_ids"]
    with torch.no_grad(), golden.composed(names, weights, mode):
        actual = golden(input_ids=ids).logits
    for row in range(5):
        dense = deepcopy(golden.base)
        for layer in range(4):
            for module in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(dense.model.layers[layer].self_attn, module).weight
                down, up, update = torch.zeros(8, 64), torch.zeros(weight.shape[0], 8), torch.zeros_like(weight)
                for name, w in zip(names, weights[row], strict=True):
                    matrices = raw(name, layer, module)
                    if matrices is not None:
                        a, b = matrices
                        update = update + w * scaling[name] * b @ a
                        down[: len(a)] += w * a
                        up[:, : len(a)] += w * scaling[name] * b
                weight.data += update if mode == "mixture" else up @ down
        with torch.no_grad():
            alone = dense(input_ids=ids[row : row + 1]).logits
        assert (actual[row] - alone[0]).abs().max() < 1e-5


def test_fault_7_a_dora_adapter_is_refused(golden):
    loaded = golden.adapters
    with pytest.raises(AdapterError, match=r"adapter 'dora', module '.*q_proj.*': DoRA"):
        golden.load_adapter(GOLDEN / "adapters" / "odd" / "dora", "dora")
    assert golden.adapters == loaded
