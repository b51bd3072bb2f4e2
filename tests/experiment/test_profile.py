"""Profiles: the profiles of the package are consistent, and a wrong field is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_retriever.data.rows import read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import PROFILES, load_profile
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
        ({"retreival": {"k": 1}}, "retreival: is no field of a profile; did you mean retrieval?"),
        ({"generation": {"max_new_token": 1}}, "max_new_token: is no field of a profile; did you mean generation."),
        ({"retrieval": {"scorer": "lexcal"}}, "); did you mean lexical?"),
        ({"data": {"rows": 7, "pool": "p"}}, "data.rows: Input should be a valid string (found 7)"),
        ({"generation": {"batch_size": 0}}, "generation.batch_size"),
        ({"generation": {"template": "alpacca"}}, "generation.template: unknown template"),
        ({"generation": {"template": "x" * 5000}}, "generation.template: unknown template 'xxx"),
        ({"retrieval": {"scorer": "bm25"}}, "retrieval.scorer: unknown scorer 'bm25' (known: "),
        ({"retrieval": {"k": "three"}}, "retrieval.k"),
        ({"retrieval": {"temperature": 0}}, "retrieval.temperature: Input should be greater than 0"),
        ({"seed": -1}, "seed"),
        ({"dtype": "int8"}, "dtype"),
        ({"folder": "/"}, "folder: is no field of a profile"),
        ({"device": "gpu"}, "device: unknown device 'gpu'; write auto, cpu, cuda"),
        ({"device": "cuda:99999999999"}, "device: unknown device 'cuda:99999999999'"),
        ({"methods": []}, "methods: Tuple should have at least 1 item"),
        ({"retrieval": {"k": True}}, "retrieval.k: is true, a truth value; write a number or a text"),
        ({"seed": False}, "seed: is false, a truth value"),
        ({"name": True}, "name: is true, a truth value"),
        ({"base": {"location": True}}, "base.location: is true, a truth value"),
        ({"threads": 100_000}, "threads: Input should be less than or equal to 1024"),
        ({"generation": {"max_prompt_tokens": 10**18}}, "generation.max_prompt_tokens: Input should be less than"),
        ({"generation": {"pad_token_id": -1}}, "generation.pad_token_id: Input should be greater than or equal to 0"),
        ({"ray": {"gpus": 1e300}}, "ray.gpus: Input should be less than"),
        ({"adapters": {"location": "./a", "memory": "many"}}, "adapters.memory"),
        ({"options": {"lorahub": {"l1": float("nan")}}}, "options.lorahub.l1: is nan; write a finite number"),
        ({"retrieval": {"temperature": float("inf")}}, "retrieval.temperature: is inf; write a finite number"),
        ({"options": {"lorahub": {"x": ["a\0"]}}}, "options.lorahub.x: has a NUL character"),
        ({"note": "a\0b"}, "note: has a NUL character, at character 2"),
        ({"data": {"rows": "", "pool": "p"}}, "data.rows: is empty"),
        ({"data": {"rows": "~nosuchuser/rows.json", "pool": "p"}}, "data.rows: ~nosuchuser/rows.json: could not det"),
        ({"data": {"rows": "x" * 5000, "pool": "p"}}, "data.rows: is no path: xxxxx"),
        ({"data": {"rows": "./" + "x" * 300, "pool": "p"}}, "data.rows: is no path: ./xxx"),
        ({"base": {"location": "./b\0"}}, "base.location: has a NUL character"),
        ({"metrics": ["./m", ""]}, "metrics.1: is empty"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, {**MINIMAL, **change})
    with pytest.raises(UserError) as error:
        load_profile(path)
    assert path in str(error.value)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["../../x", "..", "/tmp/x", "a/b", "", " ", "~", "x" * 300])
def test_the_name_of_a_profile_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, {**MINIMAL, "name": name})
    with pytest.raises(UserError) as error:
        load_profile(path)
    assert str(error.value).startswith(f"{path}: name: profile '{name[:20]}")


def test_a_swept_value_is_checked_like_a_files_value(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL))
    assert profile.replaced({"k": "4"}, "--sweep k=4").retrieval.k == 4
    with pytest.raises(UserError, match=r"^--sweep k=true: retrieval.k: is true, a truth value"):
        profile.replaced({"k": True}, "--sweep k=true")


@pytest.mark.slow
def test_many_wrong_fields_are_one_short_message(tmp_path: Path) -> None:
    path = write(tmp_path, {**MINIMAL, **{f"wrong{number}" * 50: 1 for number in range(100)}})
    with pytest.raises(UserError) as error:
        load_profile(path)
    assert str(error.value).endswith("; and 92 more")
    assert len(str(error.value)) < 2000


def test_an_unknown_profile_lists_the_known_ones() -> None:
    known = "instructions, instructions-llama2-7b, llama2-13b, llama2-7b, tiny, tiny-plans, tiny-relations"
    with pytest.raises(UserError, match=f"no profile 'lama': known are {known}"):
        load_profile("lama")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "5", "# nothing\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_profile(str(path))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud83d", "~nosuchuser/p.yaml", ""])
def test_a_name_that_is_no_path_is_one_short_message(name: str) -> None:
    with pytest.raises(UserError) as error:
        load_profile(name)
    assert len(str(error.value)) < 600


def test_a_circle_of_links_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "rows.json").symlink_to("rows.json")
    profile = load_profile(write(tmp_path, MINIMAL))
    with pytest.raises(UserError, match=r"rows\.json"):
        read_rows(profile.rows_path)


TINY_PROFILE = (PROFILES / "tiny.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_but_a_message_comes_of_mutated_profiles(tmp_path: Path, data: st.DataObject) -> None:
    """Lines of the miniature's profile with other values, keys or pieces of YAML in them."""
    values = st.sampled_from(
        ["true", "null", "-1", "1e999", ".nan", "1" * 5000, "9" * 30, "&a [*a]", "*a", "!!set {a}", "2024-13-45",
         "'\0'", '"\\0"', '"\\ud83d"', "[" * 50, "{a: {a: 1, a: 2}}", "<<: *b", "../..", "~x", "'", "|", "? []", "=",
         "1:99:99"]
    ) | st.text(max_size=6)  # fmt: skip
    lines = TINY_PROFILE.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        key = lines[index].split(":")[0] + ":"
        lines[index] = f"{data.draw(st.sampled_from([key, '', '  k:']))} {data.draw(values)}"
    path = tmp_path / "fuzz.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        profile = load_profile(str(path))
        assert isinstance(profile.rows_path, Path)
    except UserError as error:
        assert len(str(error)) < 2000


def test_a_model_larger_than_a_gpu_is_spread_and_its_encoder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile(write(tmp_path, {**MINIMAL, "device": "balanced"}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (profile.torch_device, profile.encoder_device) == ("balanced", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device is balanced, but torch finds no CUDA device"):
        _ = profile.torch_device


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert load_profile(write(tmp_path, {**MINIMAL, "device": "cuda:1"})).torch_device == "cuda:1"
    with pytest.raises(UserError, match="device is cuda:2, but torch finds 2 CUDA devices, counted from 0"):
        _ = load_profile(write(tmp_path, {**MINIMAL, "device": "cuda:2"})).torch_device
