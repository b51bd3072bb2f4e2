"""The section `data` of a profile: rows under other names, a pool drawn from training data, and the run's record."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from places import TINY
from tiny_runs import tiny_profile

from lora_retriever.analysis.runs import pool_file
from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.data.sources import DataSource
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.fields import with_sources
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.files import hash_path
from lora_retriever.methods import methods_of
from lora_retriever.running.doctor import examine
from lora_retriever.running.plan import configuration

POOL = {"from": f"{TINY}/pool.json", "samples": 3, "seed": 5}


def csv_profile(folder: Path, **data: Any) -> Profile:
    """The miniature with its rows as CSV under other names."""
    names = {"inputs": "question", "targets": "answer", "domain": "area"}
    content = json.loads((TINY / "test.json").read_text())
    pd.DataFrame(content).rename(columns=names).to_csv(folder / "rows.csv", index=False)
    return tiny_profile(folder, data={"rows": "rows.csv", "columns": names, "pool": f"{TINY}/pool.json", **data})


def configurations(profile: Profile, *names: str) -> list[dict[str, Any]]:
    benchmark = open_benchmark(profile, 2)
    methods = {method.name: method for method in methods_of(profile)}
    return [configuration(profile, benchmark, methods[name]) for name in names]


def test_one_folder_for_all_adapters_is_refused(tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path, adapters={"location": f"{TINY}/adapters"})
    with pytest.raises(UserError, match=r"has no {adapter} in it, so all 19 adapters of the pool would be the same"):
        open_benchmark(profile, 1)


@pytest.mark.slow
def test_rows_under_other_names_are_the_same_rows(tmp_path: Path) -> None:
    profile = csv_profile(tmp_path)
    benchmark = open_benchmark(profile, None)
    assert benchmark.rows == read_rows(TINY / "test.json")
    assert benchmark.hashes["rows"] == hash_path(tmp_path / "rows.csv")
    said = [finding.text for finding in islice(examine(profile, tmp_path), 2)]
    assert said == [f"rows: {len(benchmark.rows)} in {tmp_path / 'rows.csv'}", f"pool: 19 adapters in {TINY}/pool.json"]


@pytest.mark.slow
def test_a_configuration_says_how_rows_are_read_only_if_the_profile_says_so(tmp_path: Path, tiny: Profile) -> None:
    profile = csv_profile(tmp_path)
    (there,) = configurations(profile, "base")
    assert there["data"] == {"columns": profile.data.columns}
    (plain,) = configurations(tiny, "base")
    assert "data" not in plain
    assert plain["rows"] == hash_path(TINY / "test.json")


@pytest.mark.slow
def test_a_drawn_pool_has_the_hash_of_what_was_drawn(tmp_path: Path) -> None:
    first = open_benchmark(tiny_profile(tmp_path, data={"rows": f"{TINY}/test.json", "pool": POOL}), None)
    again = open_benchmark(tiny_profile(tmp_path, data={"rows": f"{TINY}/test.json", "pool": POOL}), None)
    other = open_benchmark(
        tiny_profile(tmp_path, data={"rows": f"{TINY}/test.json", "pool": {**POOL, "seed": 6}}), None
    )
    assert first.hashes == again.hashes
    assert first.hashes["pool"] != other.hashes["pool"]
    whole = {entry.model_name: set(entry.sample) for entry in read_pool(TINY / "pool.json")}
    assert [entry.model_name for entry in first.pool] == list(whole)
    assert all(len(entry.sample) == 3 and set(entry.sample) < whole[entry.model_name] for entry in first.pool)


def test_without_leaks_needs_no_drawn_pool() -> None:
    run: Any = SimpleNamespace(name="mixture", meta={"files": {"rows": "a", "pool_drawn_from": "b"}})
    with pytest.raises(UserError, match="drawn without the rows' inputs, so no row leaks"):
        pool_file([run])


def test_columns_of_rows_hold_for_training_data_until_these_have_their_own(tmp_path: Path) -> None:
    data = {"columns": {"inputs": "q", "metric": "m"}, "defaults": {"domain": "d"}, "rows": "hub:org/set"}
    profile = tiny_profile(tmp_path, data={**data, "pool": {"from": "train.csv"}, "split": "test", "revision": "v1"})
    assert profile.rows_source == DataSource(
        Path("hub:org/set"), "test", None, "v1", {"inputs": "q", "metric": "m"}, {"domain": "d"}
    )
    assert profile.pool_source == DataSource(tmp_path / "train.csv", columns={"inputs": "q"}, defaults={"domain": "d"})
    own = tiny_profile(tmp_path, data={**data, "pool": {"from": "train.csv", "columns": {}, "split": "train"}})
    assert own.pool_source == DataSource(tmp_path / "train.csv", "train", defaults={"domain": "d"})
    assert profile.replaced({"k": 2}, "a sweep").data == profile.data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"columns": {"input": "q"}}, "data.columns: unknown field of rows 'input' (known: inputs, targets, task,"),
        ({"defaults": {"inputs": "q"}}, "data.defaults: unknown field of rows 'inputs' (known: task, domain, metric)"),
        ({"pool": {"from": "a", "samples": 0}}, "data.pool: samples: Input should be greater than or equal to 1"),
        ({"pool": {"samples": 3}}, "data.pool: from: is missing"),
        ({"pool": {"from": "a", "sample": 3}}, "data.pool: sample: is no field of data.pool"),
        ({"pool": 5}, "data.pool: write a file, a folder, a Hub id, or a mapping"),
        ({"pool": ""}, "data.pool: is empty"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        tiny_profile(tmp_path, data={"rows": "rows.csv", "pool": "pool.json", **data})
    assert str(error.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")
    assert "; data" not in str(error.value), "one problem"


@pytest.mark.slow
def test_values_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_profile(tmp_path, data={"rows": "rows.csv", "pool": POOL})
    file = str(tmp_path / "mine.yaml")
    profile = load_profile(
        file, ["data.rows=hub:org/set", "data.split=test", "data.pool.from=t.csv", "data.columns={inputs: q}"]
    )
    assert (profile.rows_path, profile.pool_path) == (Path("hub:org/set"), tmp_path / "here" / "t.csv")
    assert (profile.data.split, profile.data.columns) == ("test", {"inputs": "q"})
    drawn = load_profile(file, ["data.pool={from: t.csv, samples: 4}"])
    assert drawn.pool_path == tmp_path / "here" / "t.csv"
    assert load_profile(file, ["data.pool=p.json"]).data.pool == str(tmp_path / "here" / "p.json")
    printed = tmp_path / "again.yaml"
    printed.write_text(with_sources(file))
    assert load_profile(str(printed)).data == load_profile(file).data
