"""The official files are found, checked and written; or nothing is written, and one message says what is wrong.

The tests use no network: they use small folders made here, a stand-in for the Hub, and the real files if they lie
beside the repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import enable_progress_bars
from places import ROOT

from lora_retriever import cli
from lora_retriever.data import fetching as official
from lora_retriever.data.fetching import OFFICIAL, Expected, check_official
from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import load_profile
from lora_retriever.files import hash_path

REAL = ROOT.parent / "shared" / "official"
TASKS = {"rte": ("nli", "em"), "cb": ("nli", "em"), "dart": ("struct to text", "rouge")}
SMALL = Expected(
    tasks=3,
    rows=5,
    rows_per_task=2,
    samples=2,
    domains={"nli": "em", "struct to text": "rouge"},
    short_tasks={"cb": 1},
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Records = list[dict[str, Any]]


def main(arguments: list[str]) -> int:
    return cli.main(["fetch", *arguments])


def small_rows() -> Records:
    """Five rows of three tasks, as the official file has them."""
    return [
        {"inputs": f"{task} question {number}", "targets": "yes", "task": task, "domain": domain, "metric": metric}
        for task, (domain, metric) in TASKS.items()
        for number in range(SMALL.short_tasks.get(task, SMALL.rows_per_task))
    ]


def small_pool(*further: str) -> Records:
    """An entry of two samples for every task, and for every name in `further`, of the domain `other`."""
    domains = {task: domain for task, (domain, _) in TASKS.items()} | dict.fromkeys(further, "other")
    return [
        {
            "model_name": task,
            "domain": domain,
            "sample": [{"inputs": f"{task} sample {number}", "targets": "no"} for number in range(SMALL.samples)],
        }
        for task, domain in domains.items()
    ]


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def adapter(folder: Path, *files: str) -> None:
    for name in files:
        put(folder / name, {"of": folder.name})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout of the authors' repository, in small."""
    put(tmp_path / "checkout" / "data" / "combined_test.json", small_rows())
    put(tmp_path / "checkout" / "config" / "config2.json", small_pool())
    return tmp_path / "checkout"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder. The small benchmark stands for the official benchmark."""
    monkeypatch.setattr(official, "OFFICIAL", SMALL)
    return tmp_path / "official"


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands for the Hub and holds its repositories. The file `calls` has a line for every call."""
    folder = tmp_path / "hub"
    folder.mkdir()

    def stand_in(repository: str, **options: Any) -> str:
        with (folder / "calls").open("a", encoding="utf-8") as calls:
            calls.write(f"{repository} {options.get('repo_type')} {options['revision']}\n")
        there = folder / repository / "snapshots" / COMMIT
        if not there.is_dir():
            response: Any = SimpleNamespace(headers={}, request=None)  # a response of any HTTP library
            raise RepositoryNotFoundError(f"404: {repository} not found", response=response)
        return str(there)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    yield folder
    enable_progress_bars()


def evaluation_set(the_hub: Path) -> Path:
    return the_hub / official.EVALUATION_SET / "snapshots" / COMMIT


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """The message of a command that ends with status 2 and writes nothing."""
    assert main([*map(str, arguments), "--out", str(out)]) == 2
    assert not out.exists()
    message = capsys.readouterr().err
    assert message.count("lora-retriever: ") == 1 and "Traceback" not in message
    return message


def test_a_checkout_is_laid_out_unchanged_and_recorded(source: Path, out: Path) -> None:
    assert main(["--source", str(source), "--out", str(out)]) == 0
    assert json.loads((out / "test.json").read_text()) == small_rows()
    assert json.loads((out / "pool.json").read_text()) == small_pool()
    record = json.loads((out / "record.json").read_text())
    given = source / "data" / "combined_test.json"
    assert record["evaluation_set"]["from"] == record["pool"]["from"] == str(source)
    assert record["evaluation_set"]["sha256"] == {"combined_test.json": hash_path(given)}
    assert record["outputs"] == {name: hash_path(out / name) for name in ("test.json", "pool.json")}
    assert record["counts"] == {"rows": 5, "tasks": 3, "domains": {"nli": 3, "struct to text": 2}}
    assert record["differences"] == []


def test_without_a_folder_the_files_go_where_the_profiles_read_them(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("llama2-7b", "llama2-13b"):
        profile = load_profile(name)
        assert (profile.rows_path, profile.pool_path) == tuple(
            official.official_folder() / file for file in ("test.json", "pool.json")
        )
    monkeypatch.setattr(official, "official_folder", lambda: out)
    assert main(["--source", str(source)]) == 0
    assert len(read_rows(out / "test.json")) == SMALL.rows


def test_of_the_larger_configuration_only_the_tasks_with_rows_are_kept(source: Path, out: Path) -> None:
    (source / "config" / "config2.json").unlink()
    put(source / "config_new.json", small_pool("samsum"))
    assert main(["--source", str(source), "--out", str(out)]) == 0
    assert {entry.model_name for entry in read_pool(out / "pool.json")} == set(TASKS)


@pytest.mark.parametrize("name", ["combined_test.json", "config2.json"])
def test_a_file_that_is_not_there_is_named_with_the_place(
    name: str, source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(source.rglob(name)).unlink()
    message = refused(capsys, out, "--source", source)
    assert name in message and str(source) in message and "github.com/StyxXuan/LoraRetriever" in message


def test_copies_of_a_file_are_one_but_different_ones_are_both_named(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = put(source / "old" / "combined_test.json", small_rows())
    assert main(["--source", str(source), "--out", str(out.parent / "first")]) == 0
    put(second, small_rows()[::-1])
    message = refused(capsys, out, "--source", source)
    assert str(second) in message and str(source / "data" / "combined_test.json") in message


@pytest.mark.slow
def test_a_source_that_is_no_folder_and_a_missing_pool_are_refused(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such folder" in refused(capsys, out, "--source", source / "nowhere")
    assert "--pool" in refused(capsys, out)
    assert "nowhere.json" in refused(capsys, out, "--source", source, "--pool", source / "nowhere.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[2].pop("domain"), "row 3: field 'domain': is missing"),
        (lambda rows: rows[1].update(metric="f1"), "row 2: unknown metric 'f1'"),
        (lambda rows: rows[0].update(domain="sentiment"), "more than one domain or metric in rte"),
        (lambda rows: [row.update(domain="sentiment") for row in rows[-2:]], "dart is 'struct to text'"),
        (lambda rows: [row.update(task="dialogue") for row in rows[-2:]], "in one of them only: dialogue"),
    ],
)
def test_what_no_run_could_use_is_refused_even_if_differences_are_allowed(
    change: Callable[[Records], Any], said: str, source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = small_rows()
    change(rows)
    file = put(source / "data" / "combined_test.json", rows)
    message = refused(capsys, out, "--source", source, "--allow-different")
    assert said in message and str(file) in message


@pytest.mark.slow
def test_other_counts_are_refused_by_name_or_allowed_with_a_warning(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(source / "data" / "combined_test.json", small_rows()[:-1])
    message = refused(capsys, out, "--source", source)
    assert f"{file}: 4 rows, expected 5" in message and f"{file}: 1 rows of dart, expected 2" in message
    assert main(["--source", str(source), "--out", str(out), "--allow-different"]) == 0
    assert f"warning: {file}: 4 rows, expected 5" in capsys.readouterr().err
    assert len(json.loads((out / "record.json").read_text())["differences"]) == 2


def checked(rows: Records, pool: Records) -> list[str]:
    return check_official(
        [Row.model_validate({**row, "id": place}) for place, row in enumerate(rows)],
        [PoolEntry.model_validate(entry) for entry in pool],
        SMALL,
    )


def test_every_difference_is_a_phrase() -> None:
    assert checked(small_rows(), small_pool()) == []
    pool = small_pool()
    pool[1]["sample"].pop()
    assert checked(small_rows(), pool) == ["pool: 1 samples of cb, expected 2"]
    bleu = [{**row, "metric": "bleu"} if row["task"] == "dart" else row for row in small_rows()]
    assert checked(bleu, small_pool()) == [
        "rows: new domain 'struct to text' with metric bleu",
        "rows: no domain 'struct to text' with metric rouge",
    ]
    assert "rows: 2 tasks, expected 3" in checked(small_rows()[:3], small_pool()[:2])


def test_a_pool_of_other_tasks_is_refused() -> None:
    with pytest.raises(UserError, match="in one of them only: samsum"):
        checked(small_rows(), small_pool("samsum"))


@pytest.mark.parametrize("as_lines", [False, True])
def test_the_hubs_evaluation_set_loses_the_suffix_of_its_tasks(
    as_lines: bool, the_hub: Path, source: Path, out: Path
) -> None:
    rows = [{**row, "task": f"{row['task']}_10templates"} for row in small_rows()]
    folder = evaluation_set(the_hub)
    put(folder / "dataset_infos.json", {"splits": 2})
    put(folder / "train.json", rows[:1])
    put(folder / "test.json", rows)
    if as_lines:
        (folder / "test.json").rename(folder / "test.jsonl")
        (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pool = source / "config" / "config2.json"
    assert main(["--pool", str(pool), "--eval-revision", "v1", "--out", str(out)]) == 0
    assert json.loads((out / "test.json").read_text()) == small_rows()
    evaluation = json.loads((out / "record.json").read_text())["evaluation_set"]
    assert evaluation["from"] == official.EVALUATION_SET
    assert (evaluation["revision"], evaluation["commit"]) == ("v1", COMMIT)
    assert (the_hub / "calls").read_text() == f"{official.EVALUATION_SET} dataset v1\n"


@pytest.mark.slow
def test_an_evaluation_set_of_parquet_files_is_read(the_hub: Path, source: Path, out: Path) -> None:
    file = put(evaluation_set(the_hub) / "data" / "test-00000-of-00001.parquet", "")
    pd.DataFrame(small_rows()).to_parquet(file)
    pool = source / "config" / "config2.json"
    assert main(["--pool", str(pool), "--out", str(out)]) == 0
    assert json.loads((out / "test.json").read_text()) == small_rows()


@pytest.mark.slow
def test_an_evaluation_set_that_is_absent_or_empty_is_named(
    the_hub: Path, source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = source / "config" / "config2.json"
    message = refused(capsys, out, "--pool", pool, "--eval-set", "someone/nothing", "--eval-revision", "v2")
    assert "someone/nothing at v2" in message
    evaluation_set(the_hub).mkdir(parents=True)
    assert "neither JSON nor Parquet" in refused(capsys, out, "--pool", pool)


@pytest.mark.slow
def test_adapters_in_the_source_are_checked_recorded_and_copied(source: Path, out: Path, tmp_path: Path) -> None:
    adapter(source / "llama2_7b_lora-rte", "adapter_config.json", "adapter_model.safetensors", "optimizer.bin")
    adapter(source / "llama2_13b_lora-rte", "adapter_config.json")  # an adapter of the other size does not count
    adapter(source / "adapters" / "cb", "adapter_config.json", "adapter_model.safetensors")
    adapter(source / "mine-lora-dart", "adapter_config.json", "adapter_model.safetensors")
    copies = tmp_path / "copies"
    arguments = ["--source", str(source), "--adapters", "7b", "--adapters-out", str(copies), "--out", str(out)]
    assert main(arguments) == 0
    files = sorted(path.relative_to(copies).as_posix() for path in copies.rglob("*") if path.is_file())
    assert files == [
        f"llama2_7b_lora-{task}/adapter_{kind}"
        for task in ("cb", "dart", "rte")
        for kind in ("config.json", "model.safetensors")
    ]
    adapters = json.loads((out / "record.json").read_text())["adapters"]
    assert adapters["Styxxxx/llama2_7b_lora-cb"]["from"] == str(source / "adapters" / "cb")
    assert main(arguments) == 0, "a second run finds all in place"


@pytest.mark.slow
def test_adapters_that_are_absent_or_incomplete_are_all_named(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(source / "lora-rte", "adapter_config.json", "adapter_model.bin")
    adapter(source / "lora-cb", "adapter_model.safetensors")
    message = refused(capsys, out, "--source", source, "--adapters", "13b")
    assert "3 of 3 adapters" in message and "rte (no *.safetensors)" in message
    assert "cb (no adapter_config.json)" in message and "dart (not found)" in message


def test_two_adapters_of_one_task_are_both_named(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("new", "old"):
        adapter(source / folder / "lora-cb", "adapter_config.json", "adapter_model.safetensors")
    message = refused(capsys, out, "--source", source, "--adapters", "7b")
    assert str(source / "new" / "lora-cb") in message and str(source / "old" / "lora-cb") in message


@pytest.mark.slow
def test_adapters_come_from_the_hub_where_the_source_has_none(
    the_hub: Path, source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", str(source), "--adapters", "13b", "--adapters-revision", "v3"]
    names = [f"Styxxxx/llama2_13b_lora-{task}" for task in TASKS]
    for name in names[:2]:
        adapter(the_hub / name / "snapshots" / COMMIT, "adapter_config.json", "adapter_model.safetensors")
    assert "the Hub: 1 of 3 adapters cannot be used: dart (not found)" in refused(capsys, out, *arguments)
    adapter(the_hub / names[2] / "snapshots" / COMMIT, "adapter_config.json", "adapter_model.safetensors")
    assert main([*arguments, "--out", str(out)]) == 0
    adapters = json.loads((out / "record.json").read_text())["adapters"]
    assert [(adapters[name]["from"], adapters[name]["commit"]) for name in names] == [(name, COMMIT) for name in names]
    assert (the_hub / "calls").read_text().count(" v3\n") == 6


@pytest.mark.slow
def test_the_official_files_are_as_expected(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("the official files are not beside the repository, in ../shared/official")
    assert main(["--source", str(REAL), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "test.json").read_text()) == json.loads((REAL / "combined_test.json").read_text())
    assert json.loads((tmp_path / "pool.json").read_text()) == json.loads((REAL / "config2.json").read_text())
    assert len(OFFICIAL.domains) == 10


@pytest.mark.slow
def test_the_larger_official_configuration_gives_the_same_pool(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("the official files are not beside the repository, in ../shared/official")
    arguments = ["--source", str(REAL), "--pool", str(REAL / "config_new.json"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    given = {entry["model_name"]: entry for entry in json.loads((REAL / "config2.json").read_text())}
    assert {entry["model_name"]: entry for entry in json.loads((tmp_path / "pool.json").read_text())} == given
