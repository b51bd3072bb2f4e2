"""An adapter that cannot be composed exactly is refused.

The message has name, module and reason; nothing is half-loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composition_cases import edit_config, edit_tensors, some_ids, tiny_llama, write_adapter
from safetensors.torch import load_file

from peft_composition import AdapterError, ComposableModel

Q1 = "model.layers.1.self_attn.q_proj"
KEY = f"base_model.model.{Q1}.lora_A.weight"


def refused(base, folders, folder, *said: str) -> None:
    """Assert that loading raises an error with all words of `said`, and that the model has not changed."""
    model = ComposableModel(base)
    model.load_adapter(folders["alike"], "alike")
    ids = some_ids(1)
    with model.composed(["alike"], [[1.0]]):
        before = model(input_ids=ids).logits
    with pytest.raises(AdapterError) as caught:
        model.load_adapter(folder, name="spoilt")
    for words in ("adapter 'spoilt'", *said):
        assert words in str(caught.value)
    assert model.adapters == ["alike"]
    with model.composed(["alike"], [[1.0]]):
        assert torch.equal(model(input_ids=ids).logits, before)
    model.load_adapter(folders["plain"], name="spoilt")
    assert model.adapters == ["alike", "spoilt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, ("DoRA", "q_proj")),
        ({"bias": "all"}, ("bias='all'", "q_proj")),
        ({"bias": "lora_only"}, ("bias='lora_only'", "v_proj")),
        ({"lora_bias": True}, ("bias beside B", "q_proj")),
        ({"modules_to_save": ["lm_head"]}, ("modules_to_save", "module 'lm_head'")),
        ({"trainable_token_indices": [1, 2]}, ("trainable_token_indices",)),
        ({"target_parameters": ["mlp.experts"]}, ("target_parameters", "module 'mlp.experts'")),
        ({"layer_replication": [[0, 2], [1, 2]]}, ("layer_replication",)),
        ({"alora_invocation_tokens": [5, 6]}, ("aLoRA",)),
        ({"use_qalora": True}, ("QALoRA",)),
        ({"arrow_config": {"top_k": 2}}, ("Arrow",)),
        ({"init_lora_weights": "pissa"}, ("'pissa'", "base weights")),
        ({"init_lora_weights": "pissa_niter_4"}, ("'pissa_niter_4'",)),
        ({"init_lora_weights": "olora"}, ("'olora'",)),
        ({"init_lora_weights": "corda"}, ("'corda'",)),
        ({"init_lora_weights": "lora_ga"}, ("'lora_ga'",)),
        ({"velora_config": {"num_groups": 4}}, ("velora_config",)),
        ({"use_a_context_of_tomorrow": True}, ("'use_a_context_of_tomorrow'", "upgrade peft")),
        ({"peft_type": "IA3"}, ("'IA3'", "LORA")),
        ({"peft_type": "UNHEARD_OF"}, ("'UNHEARD_OF'",)),
        ({"peft_type": None}, ("peft_type",)),
        ({"r": 0}, ("rank", Q1.replace("1", "0"))),
        ({"r": "8"}, ("rank", "'8'")),
        ({"lora_alpha": None}, ("alpha", "None")),
        ({"rank_pattern": {"layers.1.*q_proj": 5}}, (Q1, "lora_A has shape [4, 16]", "[5, 16]")),
        ({"rank_pattern": {"([": 5}}, ("model.layers.0.self_attn.q_proj",)),
        ({"target_modules": None}, ("target_modules",)),
        ({"target_modules": "(["}, ("target_modules",)),
        ({"target_modules": ["query_key_value"]}, ("query_key_value", "another base")),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, ("layers.0.self_attn.k_proj", "lora_A is missing")),
        ({"target_modules": ["q_proj"]}, ("layers.0.self_attn.v_proj", "no part of the plain LoRA")),
        ({"target_modules": ["q_proj", "embed_tokens"]}, ("model.embed_tokens", "Embedding")),
        ({"target_modules": ["input_layernorm"]}, ("model.layers.0.input_layernorm", "LlamaRMSNorm")),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_plain_lora_on_this_base(base, folders, folder, settings, said):
    refused(base, folders, edit_config(folder, **settings), *said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(KEY), (Q1, "lora_A is missing")),
        (lambda t: t.pop(KEY.replace("lora_A", "lora_B")), (Q1, "lora_B is missing")),
        (lambda t: t.update({KEY: t[KEY][:3].clone()}), (Q1, "[3, 16]", "[4, 16]")),
        (lambda t: t.update({KEY: t[KEY].T.contiguous()}), (Q1, "[16, 4]")),
        (lambda t: t[KEY][1, 2].fill_(float("nan")), (Q1, "NaN")),
        (lambda t: t[KEY][1, 2].fill_(float("inf")), (Q1, "infinity")),
        (lambda t: t.update({KEY: t[KEY].to(torch.int8)}), (Q1, "int8")),
        (
            lambda t: t.update({KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)}),
            (Q1, "DoRA"),
        ),
        (lambda t: t.update({KEY.replace("lora_A.weight", "lora_B.bias"): torch.ones(16)}), (Q1, "lora_B.bias")),
        (lambda t: t.update({f"base_model.model.{Q1}.bias": torch.ones(16)}), (Q1, "q_proj.bias")),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(48, 16)}),
            ("module 'lm_head'", "lm_head.weight"),
        ),
        (
            lambda t: t.update({KEY.replace("layers.1", "layers.7"): t[KEY].clone()}),
            ("model.layers.7.self_attn.q_proj", "another base"),
        ),
    ],
    ids=[
        "no A", "no B", "rank", "transposed", "NaN", "inf", "int8", "magnitude", "lora bias", "bias", "head",
        "extra layer",
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_the_configuration_says(base, folders, folder, edit, said):
    refused(base, folders, edit_tensors(folder, edit), *said)


def _replace_by_pickle(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def test_a_pickle_of_another_name_gets_no_command_for_a_shell(base, folders, folder):
    (folder / "adapter_model.safetensors").rename(folder / "';touch x;'.bin")
    refused(base, folders, folder, "is pickled", "save the adapter as safetensors")
    with pytest.raises(AdapterError) as error:
        ComposableModel(base).load_adapter(folder, name="pickled")
    assert "python" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_replace_by_pickle, ("adapter_model.bin is pickled", "save the adapter as safetensors")),
        (lambda f: (f / "adapter_model.safetensors").unlink(), ("no adapter_model.safetensors",)),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x99" * 200), ("not a readable safetensors",)),
        (lambda f: (f / "adapter_config.json").unlink(), ("no adapter_config.json",)),
        (lambda f: (f / "adapter_config.json").write_text('{"r": 8,'), ("not readable JSON",)),
        (lambda f: (f / "adapter_config.json").write_text("[1]"), ("JSON object",)),
        (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe{"), ("not readable JSON",)),
    ],
    ids=["pickle", "no weights", "broken weights", "no config", "cut config", "list", "not UTF-8"],
)
def test_files_that_cannot_be_read(base, folders, folder, spoil, said):
    spoil(folder)
    refused(base, folders, folder, *said)


@pytest.mark.long
def test_the_way_to_convert_a_pickle_that_the_message_names_works(base, folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError) as error:
        ComposableModel(base).load_adapter(folder, name="pickled")
    command = str(error.value).partition("in that folder: ")[2]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, cwd=folder, check=True)
    ComposableModel(base).load_adapter(folder, name="converted")
    converted = load_file(folder / "adapter_model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in tensors.items())


def test_a_truncated_weights_file(base, folders, folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(base, folders, folder, "not a readable safetensors")


def test_a_path_that_does_not_exist(base, folders, tmp_path):
    refused(base, folders, tmp_path / "nowhere", "neither a folder nor a Hub id")


def test_a_hub_id_that_cannot_be_had(base, folders, monkeypatch):
    def unavailable(repo_id, revision, allow_patterns):
        raise OSError("no route to the Hub")

    monkeypatch.setattr("peft_composition.checkpoint.snapshot_download", unavailable)
    refused(base, folders, "someone/some-adapter", "someone/some-adapter", "no route to the Hub")


def test_a_hub_id_is_downloaded_at_its_revision_and_without_pickles(base, folders, monkeypatch):
    asked = []

    def download(repo_id, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(folders["plain"])

    monkeypatch.setattr("peft_composition.checkpoint.snapshot_download", download)
    model = ComposableModel(base)
    model.load_adapter("someone/some-adapter", name="plain", revision="v1")
    assert model.adapters == ["plain"]
    assert asked == [("someone/some-adapter", "v1", ["adapter_config.json", "adapter_model.safetensors"])]


@pytest.mark.slow
def test_an_adapter_of_a_narrower_base(base, folders, tmp_path):
    narrow = tiny_llama()
    narrow.model.layers[1].self_attn.q_proj = torch.nn.Linear(12, 16, bias=False)
    folder = write_adapter(tmp_path / "narrow", narrow, seed=1)
    refused(base, folders, folder, Q1, "[4, 12]", "[4, 16]", "another base")


@pytest.mark.slow
def test_an_adapter_of_a_deeper_base(base, folders, tmp_path):
    folder = write_adapter(tmp_path / "deep", tiny_llama(layers=3), seed=1)
    refused(base, folders, folder, "model.layers.2.self_attn.q_proj", "another base")


@pytest.mark.slow
def test_an_adapter_of_a_shallower_base(base, folders, tmp_path):
    folder = write_adapter(tmp_path / "shallow", tiny_llama(layers=1), seed=1)
    refused(base, folders, folder, Q1, "lora_A is missing")


@pytest.mark.slow
def test_values_that_overflow_in_the_dtype_of_the_base(folders, folder):
    model = ComposableModel(tiny_llama().half())
    edit_tensors(folder, lambda t: t[KEY].fill_(1e6))
    with pytest.raises(AdapterError, match=rf"adapter 'spoilt', module '{Q1}': .*overflow"):
        model.load_adapter(folder, "spoilt")
    assert model.adapters == []
    # The tensors of the first layer were sound. If these tensors stayed in the slot, they would act as a part of the
    # next adapter, which does not target the first layer.
    model.load_adapter(folders["regex"], "regex")
    fresh = ComposableModel(model.base)
    fresh.load_adapter(folders["regex"], "regex")
    with torch.no_grad(), model.composed(["regex"], [[1.0]]):
        actual = model(input_ids=some_ids(1)).logits
    with torch.no_grad(), fresh.composed(["regex"], [[1.0]]):
        assert torch.equal(actual, fresh(input_ids=some_ids(1)).logits)


def test_a_copy_of_the_bases_own_weight_is_no_reason_to_refuse(base, folder):
    # PEFT saves the output embedding along when the vocabulary may have grown.
    key = "base_model.model.lm_head.weight"
    edit_tensors(folder, lambda t: t.update({key: base.lm_head.weight.detach().bfloat16()}))
    model = ComposableModel(base)
    model.load_adapter(folder, "plain")
    assert model.adapters == ["plain"]


@pytest.mark.parametrize("initialisation", [False, "gaussian", "eva", "orthogonal"])
def test_settings_that_only_concern_training_are_no_reason_to_refuse(base, folder, initialisation):
    edit_config(folder, lora_dropout=0.1, init_lora_weights=initialisation, new_number=3, new_null=None)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["use_rslora"], config["alpha_pattern"]  # older PEFT does not write them
    file.write_text(json.dumps(config))
    model = ComposableModel(base)
    model.load_adapter(folder, "plain")
    assert model.adapters == ["plain"]
