"""Profiles: those that come with the package hold together, and a wrong field is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import load_profile
from lora_retriever.methods import methods_of, registered

MINIMAL = {
    "base": {"location": "./base"},
    "adapters": {"location": "./adapters/{adapter}"},
    "encoder": {"location": "org/encoder", "revision": "abc"},
    "data": {"rows": "rows.json", "pool": "~/pool.json"},
}


def write(folder: Path, content: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_papers_profiles_are_complete(size: str) -> None:
    profile = load_profile(f"llama2-{size}")
    assert profile.base.location == f"meta-llama/Llama-2-{size}-hf"
    # Fault 10 of the original: its 13b run retrieves 7b adapters.
    assert profile.adapter_location("dart") == f"Styxxxx/llama2_{size}_lora-dart"
    assert profile.encoder.location == "Styxxxx/lora_retriever"
    assert (profile.retrieval.scorer, profile.retrieval.k) == ("mean_ip", 3)
    assert (profile.generation.max_prompt_tokens, profile.generation.max_new_tokens) == (512, 50)
    assert profile.dtype == "bfloat16"
    assert methods_of(profile) == [method.with_options({}) for method in registered().values()]


def test_locations_start_at_the_profiles_folder_or_are_hub_ids(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL))
    assert profile.name == "mine"
    assert profile.local_path(profile.base.location) == tmp_path / "base"
    assert profile.local_path(profile.encoder.location) is None
    assert profile.rows_path == tmp_path / "rows.json"
    assert profile.pool_path == Path.home() / "pool.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": {}}, "base.location: is missing"),
        ({"bse": 1}, "bse: is no field of a profile"),
        ({"generation": {"batch_size": 0}}, "generation.batch_size"),
        ({"generation": {"template": "alpacca"}}, "generation.template: unknown template"),
        ({"retrieval": {"scorer": "bm25"}}, "retrieval.scorer: unknown scorer 'bm25' (known: "),
        ({"retrieval": {"k": "three"}}, "retrieval.k"),
        ({"retrieval": {"temperature": 0}}, "retrieval.temperature: Input should be greater than 0"),
        ({"seed": -1}, "seed"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, {**MINIMAL, **change})
    with pytest.raises(UserError) as error:
        load_profile(path)
    assert path in str(error.value)
    assert message in str(error.value)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="no profile 'lama': known are llama2-13b, llama2-7b, tiny"):
        load_profile("lama")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_profile(str(path))


def test_a_model_larger_than_a_gpu_is_spread_and_its_encoder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile(write(tmp_path, {**MINIMAL, "device": "balanced"}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (profile.torch_device, profile.encoder_device) == ("balanced", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device is balanced, but torch finds no CUDA device"):
        _ = profile.torch_device
