"""An inconsistent benchmark is refused before anything is loaded. One message names all problems."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import TINY

from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.checks import benchmark_problems, benchmark_warnings, folded, other_spelling
from lora_retriever.experiment.profile import Profile, load_profile

CITY = "citt\u00e0_qa"


def profile_of(folder: Path, **changes: Any) -> Profile:
    content = {
        "base": {"location": str(TINY / "base")},
        "adapters": {"location": str(TINY / "adapters" / "{adapter}")},
        "encoder": {"location": str(TINY / "encoder")},
        "data": {"rows": "./rows.json", "pool": "./pool.json"},
        "device": "cpu",
        **changes,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_profile(str(path))


def row(task: str, id: int = 0, metric: str = "em", domain: str = "qa") -> Row:
    return Row(id=id, inputs="what?", targets="that", task=task, domain=domain, metric=metric)


def pool_of(*names: str, domain: str = "qa") -> list[PoolEntry]:
    sample = [{"inputs": "what?", "targets": "that"}]
    return [PoolEntry.model_validate({"model_name": name, "domain": domain, "sample": sample}) for name in names]


@pytest.mark.slow
def test_the_miniature_and_the_official_files_have_no_problems(tiny: Profile, official: Path) -> None:
    rows, pool = read_rows(tiny.rows_path), read_pool(tiny.pool_path)
    assert benchmark_problems(tiny, rows, pool) == benchmark_warnings(tiny, rows, pool) == []
    rows, pool = read_rows(official / "combined_test.json"), read_pool(official / "config2.json")
    profile = load_profile("llama2-7b")
    assert benchmark_problems(profile, rows, pool) == benchmark_warnings(profile, rows, pool) == []
    assert benchmark_problems(profile, rows, read_pool(official / "config_new.json")) == []


@pytest.mark.parametrize(
    "other",
    [
        "Citt\u00e0_QA",  # case
        "citt\u00e0_qa ",  # white space at the end
        "citt\u00e0 _qa",
        "citt\u00e0_qa\u00a0",  # a space that does not break
        "citt\u00e0_\u200bqa",  # a space without width
        "citt\u00e0_q\u00ada",  # a soft hyphen
        "citt\u00e0_qa\ufe0f",
        "citt\u00e0_q\u0430",  # a letter of Cyrillic
        "\uff43\uff49\uff54\uff54\u00e0_qa",  # letters of full width
    ],
)
@pytest.mark.parametrize("where", ["rows and pool", "rows", "pool"])
def test_names_that_differ_in_nothing_a_reader_sees_are_refused(tmp_path: Path, other: str, where: str) -> None:
    tasks = {"rows and pool": [CITY], "rows": [CITY, other], "pool": ["b"]}[where]
    names = {"rows and pool": [other, "b"], "rows": ["b"], "pool": [CITY, other]}[where]
    rows = [row(task, id) for id, task in enumerate(tasks)]
    (problem,) = benchmark_problems(profile_of(tmp_path), rows, pool_of(*names))
    assert ascii(CITY) in problem
    assert ascii(other) in problem
    assert problem.isascii()  # both spellings can be told apart
    assert "an out-of-domain variant would not mask the row's own adapter" in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x1", "x2"),
        ("wmt16_deen", "wmt16_csen"),
        ("citta", "citt\u00e0"),
        ("a_b", "ab"),
        ("\u03bd", "v"),
        ("mu", "\u03bc"),
    ],
)
def test_names_that_a_reader_tells_apart_are_two_names(one: str, other: str) -> None:
    assert folded(one) != folded(other)


@pytest.mark.parametrize("other", ["DART", "DART_10templates", "dart_10Templates", "dart_10templates\u00a0"])
def test_the_names_of_one_official_task_are_refused_beside_one_another(tmp_path: Path, other: str) -> None:
    (problem,) = benchmark_problems(profile_of(tmp_path), [row(other, 0)], pool_of("dart", "b"))
    assert f"task {other!a}" in problem
    assert "name one official task; an out-of-domain variant would not mask the row's own adapter" in problem


def test_another_spelling_of_an_own_adapter_is_found() -> None:
    assert other_spelling("rel_Born in", ["rel_extract", "rel_born in"]) == "rel_born in"
    assert other_spelling("rel_born in", ["rel_born in", "rel_Born in"]) == "rel_Born in"
    assert other_spelling("rel_born in", ["rel_born in"]) is None
    assert other_spelling("rel_died in", ["rel_born in"]) is None


def test_one_name_in_two_unicode_forms_is_one_name_and_its_folder_is_found(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", CITY)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / decomposed).symlink_to(TINY / "adapters" / "city_qa")
    content = [{**row(CITY).model_dump(), "task": CITY}]
    (tmp_path / "rows.json").write_text(json.dumps(content))
    (tmp_path / "pool.json").write_text(json.dumps([{**pool_of("a")[0].model_dump(), "model_name": decomposed}]))
    profile = profile_of(tmp_path, adapters={"location": "./adapters/{adapter}"})
    benchmark = open_benchmark(profile, None)
    assert [entry.model_name for entry in benchmark.pool] == [benchmark.rows[0].task] == [CITY]
    assert benchmark.adapters[CITY].resolve() == (TINY / "adapters" / "city_qa").resolve()


def test_a_task_has_one_metric_and_one_domain(tmp_path: Path) -> None:
    rows = [row("a"), row("a", 1, "bleu"), row("b", 2), row("b", 3, domain="nli"), row("c", 4)]
    metrics, domains = benchmark_problems(profile_of(tmp_path), rows, pool_of("a", "b", "c"))
    assert metrics.endswith("task 'a' has 2 metrics: 'em' (row 1), 'bleu' (row 2); a task has one")
    assert domains.endswith("task 'b' has 2 domains: 'qa' (row 3), 'nli' (row 4); a task has one")


def test_domains_that_look_alike_are_refused(tmp_path: Path) -> None:
    rows = [row("a", domain="closed book"), row("b", 1, domain="Closed Book")]
    (problem,) = benchmark_problems(profile_of(tmp_path), rows, pool_of("a", "b"))
    assert "the domains 'closed book' and 'Closed Book' differ only by" in problem


def test_a_metric_must_be_known_there_and_allowed(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "mine.py").write_text("raise AssertionError('this code was run')")
    mine, missing = str(tmp_path / "metrics" / "mine.py"), str(tmp_path / "metrics" / "other.py")
    rows = [row("a", 0, mine), row("b", 1, missing), row("c", 2, "EM"), row("d", 3, mine)]
    pool = pool_of("a", "b", "c", "d")
    forbidden, absent, unknown = benchmark_problems(profile_of(tmp_path), rows, pool)
    assert "row 1: metric" in forbidden
    assert "code that rows name runs only from allowed folders" in forbidden
    assert f"row 2: metric {missing}: no such folder or script" in absent
    assert "row 3: unknown metric 'EM' (known: bleu, choice, choice_norm, em, kas, rouge, starts_with" in unknown
    allowed = profile_of(tmp_path, metrics=["./metrics"])
    assert benchmark_problems(allowed, [rows[0], rows[3]], pool) == []


@pytest.mark.parametrize(
    "name", ["../../..", "..", ".", "/etc", "a/../../b", "a//b", "a/", "~root", "~/x", "x" * 300, "a/" + "x" * 300]
)
def test_the_name_of_an_adapter_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    (problem,) = benchmark_problems(profile_of(tmp_path), [], pool_of(name))
    assert problem.startswith(f"{tmp_path / 'pool.json'}: row 1: adapter '{name[:20]}")
    assert problem.endswith("; rename")


def test_adapters_may_lie_in_folders_of_folders(tmp_path: Path) -> None:
    assert benchmark_problems(profile_of(tmp_path), [], pool_of("qa/squad", "a.b", "...", ".hidden", "a b")) == []


def test_one_location_for_several_adapters_is_warned_of(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, adapters={"location": "./adapter"})
    (warning,) = benchmark_warnings(profile, [], pool_of("a", "b"))
    assert warning.startswith(
        "adapters.location './adapter' is the same for all 2 adapters of the pool; write {adapter}"
    )
    assert benchmark_warnings(profile, [], pool_of("a")) == []


def test_tasks_without_an_adapter_and_other_domains_are_warned_of(tmp_path: Path) -> None:
    rows = [row("a"), row("b", 1), row("c", 2, domain="nli")]
    without, domains = benchmark_warnings(profile_of(tmp_path), rows, pool_of("a", "c"))
    assert "tasks without an adapter in the pool" in without
    assert "pool.json: b. best_selection cannot" in without
    assert domains == "tasks whose domain differs between rows and pool: c (rows: nli, pool: qa)"


def test_all_problems_are_one_message_and_nothing_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a limit leaves out are checked, too."""
    rows = [row("a"), row("a", 1, "bleu"), row("B", 2)]
    (tmp_path / "rows.json").write_text(json.dumps([one.model_dump() for one in rows]))
    (tmp_path / "pool.json").write_text(json.dumps([entry.model_dump() for entry in pool_of("b", "../..")]))
    monkeypatch.setattr("lora_retriever.experiment.benchmark.hash_path", lambda _: pytest.fail("hashed"))
    with pytest.raises(UserError) as error:
        open_benchmark(profile_of(tmp_path), limit=1)
    title, *problems = str(error.value).splitlines()
    assert title == "profile mine: the benchmark is inconsistent: 3 problems"
    assert ["adapter '../..'" in problems[0], "'B'" in problems[1], "2 metrics" in problems[2]] == [True] * 3


def test_a_message_lists_fifty_problems_and_counts_the_others(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row("t0").model_dump()]))
    entries = [entry.model_dump() for entry in pool_of(*(f"../{number}" for number in range(70)))]
    (tmp_path / "pool.json").write_text(json.dumps(entries))
    with pytest.raises(UserError) as error:
        open_benchmark(profile_of(tmp_path), None)
    title, *problems, more = str(error.value).splitlines()
    assert (title.endswith(": 70 problems"), len(problems), more) == (True, 50, "and 20 more")


def test_all_adapters_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row("city_qa").model_dump()]))
    (tmp_path / "pool.json").write_text(json.dumps([e.model_dump() for e in pool_of("city_qa", "x", "y")]))
    with pytest.raises(UserError) as error:
        open_benchmark(profile_of(tmp_path), None)
    _, *problems = str(error.value).splitlines()
    assert [problem.split(":")[0] for problem in problems] == ["adapter x", "adapter y"]


def test_what_a_run_should_say_is_in_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{**row("city_qa").model_dump(), "source": ["web"]}]))
    (tmp_path / "pool.json").write_text(json.dumps([e.model_dump() for e in pool_of("city_qa", domain="nli")]))
    fields, domains = open_benchmark(profile_of(tmp_path), None).warnings
    assert fields.endswith("fields of rows that are not used: source")
    assert "domain differs" in domains
