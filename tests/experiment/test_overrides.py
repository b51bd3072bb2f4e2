"""`--set`: values of the command line in place of a profile's, checked like the file's and recorded like the file's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import write_profile

from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import load_profile

FILE = {
    "base": {"location": "./base"},
    "adapters": {"location": "org/{adapter}"},
    "encoder": {"location": "org/encoder"},
    "data": {"rows": "rows.json", "pool": "pool.json"},
    "options": {"lorahub": {"samples": 5}},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile in a folder, while the current folder is another one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(FILE))
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("retrieval.k=5", ["retrieval", "k", 5]),
        ("retrieval.temperature=0.5", ["retrieval", "temperature", 0.5]),
        ("encoder.cache=false", ["encoder", "cache", False]),
        ("seed=3", ["seed", 3]),
        ("backend=ray", ["backend", "ray"]),
        ("methods=[base, mixture]", ["methods", ("base", "mixture")]),
        ("options.lorahub.steps=7", ["options", {"lorahub": {"samples": 5, "steps": 7}}]),
        ("options.moe_soft.epochs=1", ["options", {"lorahub": {"samples": 5}, "moe_soft": {"epochs": 1}}]),
        ("generation.template=Q: {inputs} = ?\nA:", ["generation", "template", "Q: {inputs} = ?\nA:"]),
        ("note=yes", ["note", "yes"]),
        ("encoder.instruction=", ["encoder", "instruction", ""]),
        ("base.revision=null", ["base", "revision", None]),
        ("base.revision=123", ["base", "revision", "123"]),
        ("adapters.memory=1KiB", ["adapters", "memory", 1024]),
        ("base.location=org/other", ["base", "location", "org/other"]),
        ("data.rows={official}/test.json", ["data", "rows", "{official}/test.json"]),
    ],
)
def test_a_value_takes_the_place_of_the_files(file: str, text: str, value: list[Any]) -> None:
    profile = load_profile(file, [text])
    found: Any = profile
    for name in value[:-1]:
        found = getattr(found, name)
    assert found == value[-1]
    field = value[0]
    rest, before = profile.model_dump(exclude={field}), load_profile(file).model_dump(exclude={field})
    assert rest == before, "nothing else changes"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("base.location=./other", "here/other"),
        ("adapters.location=../adapters/{adapter}", "adapters/{adapter}"),
        ("data.rows=rows.json", "here/rows.json"),
        ("data.rows=/elsewhere/rows.json", "/elsewhere/rows.json"),
        ("metrics=[./metrics]", "here/metrics"),
    ],
)
def test_a_relative_location_starts_at_the_current_folder(file: str, text: str, place: str, tmp_path: Path) -> None:
    profile = load_profile(file, [text])
    found = {
        "base.location": profile.local_path(profile.base.location),
        "adapters.location": profile.local_path(profile.adapters.location),
        "data.rows": profile.rows_path,
        "metrics": (*profile.metric_folders, None)[0],
    }[text.partition("=")[0]]
    assert found == tmp_path / place
    assert profile.pool_path == tmp_path / "pool.json", "the file's own locations start at its folder"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["retrieval.k"], "--set retrieval.k: expected FIELD=VALUE, for example retrieval.k=5"),
        (["=5"], "--set =5: expected FIELD=VALUE"),
        (["retrieval..k=5"], "expected FIELD=VALUE"),
        ([f"{'a.' * 5000}k=5"], "expected FIELD=VALUE"),
        (["seed=1", "seed=2"], "--set seed=2: seed is set twice"),
        (["retrieval.q=5"], "mine.yaml --set retrieval.q=5: retrieval.q: is no field of a profile"),
        (["retrieval.k=0"], "mine.yaml --set retrieval.k=0: retrieval.k: "),
        (["seed=true"], "seed: is true, a truth value"),
        (["seed=[1"], "--set seed=[1: not readable as YAML"),
        (["seed=!!python/object:os.system x"], "only texts, numbers"),
        (["options.lorahub.samples.x=1"], "--set samples.x: samples is 5, which has no fields"),
        (["folder=/"], "folder: is no field of a profile"),
    ],
)
def test_a_mistake_is_named_with_its_argument(file: str, texts: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_profile(file, texts)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_alias_of_the_file_keeps_its_other_places(tmp_path: Path) -> None:
    text = yaml.safe_dump({**FILE, "options": {}}) + "\n"
    text = text.replace("options: {}", "options: {lorahub: &five {samples: 5}, moe_soft: *five}")
    (tmp_path / "alias.yaml").write_text(text)
    profile = load_profile(str(tmp_path / "alias.yaml"), ["options.lorahub.samples=9"])
    assert profile.options == {"lorahub": {"samples": 9}, "moe_soft": {"samples": 5}}


@pytest.mark.slow
def test_a_run_records_what_was_set_as_it_records_the_files_values(tmp_path: Path) -> None:
    """The configuration equals the configuration of a profile's file with the same value."""
    same = write_profile(tmp_path, generation={"max_new_tokens": 3})
    arguments = ["run", "--only", "base", "--limit", "1", "--results"]
    assert main([*arguments, str(tmp_path / "set"), "--set", "generation.max_new_tokens=3"]) == 0
    assert main([*arguments, str(tmp_path / "file"), "--profile", same]) == 0
    one, other = (
        json.loads((tmp_path / name / "base.meta.json").read_text())["configuration"] for name in ("set", "file")
    )
    assert one["generation"]["max_new_tokens"] == 3
    assert one == other
