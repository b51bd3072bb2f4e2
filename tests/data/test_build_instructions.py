"""The instruction benchmark is the same from equal sources, shares no case between training and test, and says when a
source is unusable.

The sources are made here: their texts are numbered words, so that a test finds the case of an input without the code
under test. The real sources are also read if they lie beside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from instruction_benchmark.plan import TaskPlan
from instruction_benchmark.sources import Case, read_cases
from instruction_benchmark.split import MAX_CHARACTERS, divided, merged
from instruction_benchmark.wording import Instructions, check_distinct, dealt, instructions_of, worded
from places import ROOT

from lora_retriever.analysis.audit import audit, leaked_ids
from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.errors import UserError
from scripts.build_instructions import main

REAL = ROOT.parent / "shared" / "data"
OUTPUTS = ("test.json", "pool.json", "train.json", "card.json")
Json = Any

SMALL_PLAN = {
    "sources": {
        "induction": {
            "repository": "the first repository",
            "licence": "A",
            "folders": ["data/raw/induce"],
            "held_out": "data/raw/execute",
            "instructions": "data/annotations",
        },
        "vectors": {"repository": "the second repository", "licence": "B", "folders": ["files/one", "files/two"]},
    },
    "layouts": ["{colon} {text}", "{text}\n{stop}", "{stop}\nInput: {text}"],
    "tasks": {
        "upper": {
            "domain": "letters",
            "source": "induction",
            "file": "up",
            "left_out": [2],
            "unseen": ["Shout this", "Make it loud", "Larger letters, please"],
        },
        "next": {
            "domain": "numbers",
            "source": "vectors",
            "file": "after",
            "seen": ["Add one", "What follows?", "Go on by one.", "Name the successor:"],
            "unseen": ["One more", "Count on"],
        },
    },
}
"""A plan of two tasks; JSON is YAML, too. The source's second instruction of `upper` is left out."""
ANNOTATIONS = [
    "write in capitals",
    "ask for nothing",
    "Write in capitals:",
    "use capitals",
    "to upper case",
    "capitalise",
]


def write(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def pairs(word: str, count: int) -> list[dict[str, str]]:
    return [{"input": f"{word}{number}", "output": f"answer {number}"} for number in range(count)]


def as_examples(cases: list[dict[str, Json]]) -> Json:
    return {"metadata": {}, "examples": {str(number): case for number, case in enumerate(cases, start=1)}}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A plan of two tasks and its two sources, in one folder: 620 + 60 cases of `upper`, 90 of `next`."""
    write(tmp_path / "plan.yaml", SMALL_PLAN)
    write(tmp_path / "induction/data/raw/induce/up.json", as_examples(pairs("up", 620)))
    write(tmp_path / "induction/data/raw/execute/up.json", as_examples(pairs("held", 60)))
    write(tmp_path / "induction/data/annotations/up.json", {"annotations": ANNOTATIONS})
    write(tmp_path / "vectors/files/two/after.json", pairs("after", 90))
    (tmp_path / "vectors/files/one").mkdir()
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        *("--plan", str(folder / "plan.yaml"), "--out", str(folder / "out")),
        *("--induction", str(folder / "induction"), "--vectors", str(folder / "vectors"), *more),
    ]


def built(folder: Path, *more: str) -> dict[str, Json]:
    """The four files of a build, by their names."""
    assert main(arguments(folder, *more)) == 0
    return {name: json.loads((folder / "out" / name).read_text(encoding="utf-8")) for name in OUTPUTS}


def case_of(inputs: str) -> str:
    """The numbered word in an input."""
    (word,) = re.findall(r"(?:up|held|after)\d+", inputs)
    return str(word)


def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a build that fails and writes nothing."""
    assert main(arguments(folder)) == 2
    assert not (folder / "out").exists()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.slow
def test_equal_sources_and_seed_give_equal_bytes_in_another_process(small: Path) -> None:
    built(small)
    first = [(small / "out" / name).read_bytes() for name in OUTPUTS]
    command = [
        sys.executable,
        str(ROOT / "scripts/build_instructions.py"),
        *arguments(small, "--out", str(small / "2")),
    ]
    path = os.pathsep.join([str(ROOT), *sys.path])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path})
    assert [(small / "2" / name).read_bytes() for name in OUTPUTS] == first


@pytest.mark.slow
def test_another_seed_draws_other_rows(small: Path) -> None:
    assert built(small)["test.json"] != built(small, "--seed", "1")["test.json"]


@pytest.mark.slow
def test_a_task_does_not_depend_on_the_other_tasks(small: Path) -> None:
    both = built(small)
    plan = {**SMALL_PLAN, "tasks": {"next": SMALL_PLAN["tasks"]["next"]}}  # type: ignore[index]
    write(small / "plan.yaml", plan)
    alone = built(small)
    assert alone["test.json"] == [row for row in both["test.json"] if row["task"] == "next"]
    assert alone["train.json"] == both["train.json"][1:]


def test_a_task_has_50_rows_20_samples_and_at_most_500_examples(small: Path) -> None:
    files = built(small)
    assert Counter(row["task"] for row in files["test.json"]) == {"upper": 50, "next": 50}
    assert [len(entry["sample"]) for entry in files["pool.json"]] == [20, 20]
    assert [len(entry["sample"]) for entry in files["train.json"]] == [500, 40]  # 90 cases without 50 test rows
    for pool, train in zip(files["pool.json"], files["train.json"], strict=True):
        assert pool == {**train, "sample": train["sample"][:20]}


@pytest.mark.slow
def test_rows_and_pools_are_those_of_the_project(small: Path) -> None:
    built(small)
    rows = read_rows(small / "out/test.json")
    assert {(row.task, row.domain, row.metric) for row in rows} == {
        ("upper", "letters", "em"),
        ("next", "numbers", "em"),
    }
    for name in ("pool.json", "train.json"):
        pool = read_pool(small / "out" / name)
        assert [(entry.model_name, entry.domain) for entry in pool] == [("upper", "letters"), ("next", "numbers")]
        assert not leaked_ids(rows, pool)


@pytest.mark.slow
def test_no_case_is_in_both_training_and_test(small: Path) -> None:
    files = built(small)
    for entry in files["train.json"]:
        tested = [case_of(row["inputs"]) for row in files["test.json"] if row["task"] == entry["model_name"]]
        trained = [case_of(sample["inputs"]) for sample in entry["sample"]]
        assert len(set(tested)) == len(tested)
        assert len(set(trained)) == len(trained)
        assert not set(tested) & set(trained)


@pytest.mark.slow
def test_rows_come_from_the_cases_that_the_source_holds_out(small: Path) -> None:
    files = built(small)
    assert {case_of(row["inputs"])[:4] for row in files["test.json"] if row["task"] == "upper"} == {"held"}
    assert all(case_of(sample["inputs"]).startswith("up") for sample in files["train.json"][0]["sample"])


@pytest.mark.slow
def test_every_case_keeps_its_own_answer(small: Path) -> None:
    files = built(small)
    samples = [sample for entry in files["train.json"] for sample in entry["sample"]]
    for sample in (*files["test.json"], *samples):
        assert sample["targets"] == "answer " + re.sub(r"\D", "", case_of(sample["inputs"]))


@pytest.mark.slow
def test_every_second_row_has_an_instruction_that_no_example_has(small: Path) -> None:
    files = built(small)
    seen = {
        "upper": ["write in capitals", "use capitals", "to upper case", "capitalise"],
        "next": ["Add one", "What follows?", "Go on by one", "Name the successor"],
    }
    assert [row["instruction"] for row in files["test.json"]] == ["seen", "unseen"] * 50
    for entry in files["train.json"]:
        name = entry["model_name"]
        unseen = SMALL_PLAN["tasks"][name]["unseen"]  # type: ignore[index]
        for row in (row for row in files["test.json"] if row["task"] == name):
            assert any(text in row["inputs"] for text in seen[name]) == (row["instruction"] == "seen")
            assert any(text in row["inputs"] for text in unseen) == (row["instruction"] == "unseen")
        for number, sample in enumerate(entry["sample"]):
            assert any(text in sample["inputs"] for text in seen[name]), number
            assert not any(text in sample["inputs"] for text in (*unseen, "ask for nothing"))
        for text in seen[name]:
            assert sum(text in sample["inputs"] for sample in entry["sample"][:20]) == 5


def test_every_layout_is_used_by_both_halves_of_the_rows_and_by_the_pool(small: Path) -> None:
    files = built(small)
    layouts = {
        "colon": re.compile(r"[^\n]+[:?] \w+\d+"),
        "after": re.compile(r"\w+\d+\n.+[.?]"),
        "before": re.compile(r".+[.?]\nInput: \w+\d+"),
    }

    def count(inputs: list[str]) -> list[int]:
        return sorted(sum(bool(layout.fullmatch(text)) for text in inputs) for layout in layouts.values())

    for name in ("upper", "next"):
        for kind in ("seen", "unseen"):
            of_half = [r["inputs"] for r in files["test.json"] if (r["task"], r["instruction"]) == (name, kind)]
            assert count(of_half) == [8, 8, 9]
    for entry in files["pool.json"]:
        assert count([sample["inputs"] for sample in entry["sample"]]) == [6, 7, 7]


@pytest.mark.slow
def test_the_card_counts_and_hashes_what_was_read_and_written(small: Path) -> None:
    card = built(small)["card.json"]

    def digest(path: str) -> str:
        return hashlib.sha256((small / path).read_bytes()).hexdigest()

    assert card["counts"] == {"tasks": 2, "domains": 2, "rows": 100, "samples": 40, "examples": 540}
    assert card["domains"] == {"letters": 1, "numbers": 1}
    upper = card["tasks"]["upper"]
    assert (upper["cases"], upper["rows"], upper["samples"], upper["examples"]) == (680, 50, 20, 500)
    assert upper["instructions"]["seen"] == ["write in capitals", "use capitals", "to upper case", "capitalise"]
    files = ("data/raw/induce/up.json", "data/raw/execute/up.json", "data/annotations/up.json")
    induction, vectors = card["sources"]["induction"], card["sources"]["vectors"]
    assert induction["sha256"] == {file: digest(f"induction/{file}") for file in files}
    assert vectors["sha256"] == {"files/two/after.json": digest("vectors/files/two/after.json")}
    assert (induction["licence"], induction["repository"], induction["commit"]) == ("A", "the first repository", None)
    assert card["outputs"] == {name: digest(f"out/{name}") for name in OUTPUTS[:3]}
    assert card["plan"] == digest("plan.yaml")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_card_names_the_commit_of_a_checkout(small: Path) -> None:
    git = ["git", "-C", str(small / "vectors"), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True)
    head = (small / "vectors/.git/HEAD").read_text(encoding="utf-8").removeprefix("ref: ").strip()
    commit = (small / "vectors/.git" / head).read_text(encoding="utf-8").strip()
    sources = built(small)["card.json"]["sources"]
    assert sources["vectors"]["commit"] == commit
    assert sources["induction"]["commit"] is None


def test_answers_of_a_source_are_all_right_and_the_learnable_one_is_first(tmp_path: Path) -> None:
    cases = [
        {"input": "time", "output": "hora", "possible_translations": ["tanda", "hora", "vez"]},
        {"input": "pig", "output": "big", "other_rhymes": ["pig", "dig", "big"]},
        {"input": "Albania", "output": "Lek (ALL)"},
        {"input": "a, x, b", "output": "b, a", "words": ["a", "x", "b"], "category_items": ["b", "a"]},
        {"input": " spaces ", "output": "no ", "possible_outputs": ["no", "false"]},
    ]
    write(tmp_path / "cases.json", as_examples(cases))
    assert read_cases(tmp_path / "cases.json") == (
        Case("time", ("hora", "tanda", "vez")),
        Case("pig", ("big", "dig")),
        Case("Albania", ("Lek", "Lek (ALL)")),
        Case("a, x, b", ("a, b", "b, a")),
        Case("spaces", ("no", "false")),
    )


def test_a_text_that_is_there_twice_is_one_case_with_both_answers() -> None:
    cases = [Case("v", ("w",)), Case("x", ("y",)), Case(" v", ("vi", "w"))]
    assert merged(cases) == [Case("v", ("w", "vi")), Case("x", ("y",))]


def test_long_cases_are_left_out() -> None:
    kept = Case("a" * MAX_CHARACTERS, ("b",))
    assert merged([kept, Case("a" * (MAX_CHARACTERS + 1), ("b",))]) == [kept]


def test_the_same_words_in_another_order_or_in_capitals_are_not_divided() -> None:
    words = [f"w{number}" for number in range(12)]
    cases = [Case(f"{first}, {second}", ("x",)) for first, second in permutations(words, 2)]  # 66 pairs of words, twice
    cases += [Case(case.text.upper(), case.targets) for case in cases]
    test, training = divided(cases, (), Random(0))

    def key(case: Case) -> frozenset[str]:
        return frozenset(case.text.lower().split(", "))

    tested = {key(case) for case in test}
    assert len(test) == len(tested) == 50
    assert len(training) == 4 * (66 - 50)
    assert not tested & {key(case) for case in training}


def test_instructions_are_dealt_evenly() -> None:
    for count in range(12):
        found = Counter(dealt("abc", count, Random(count)))
        assert sum(found.values()) == count
        assert all(found[letter] in (count // 3, -(-count // 3)) for letter in "abc")


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Add one", ("Add one: {}", "Add one.")),
        ("Add one. ", ("Add one: {}", "Add one.")),
        ("Add one:", ("Add one: {}", "Add one.")),
        ("What follows?", ("What follows? {}", "What follows?")),
    ],
)
def test_an_instruction_ends_with_the_mark_of_its_layout(instruction: str, expected: tuple[str, str]) -> None:
    assert worded("{colon} {text}", instruction, "{}") == expected[0]
    assert worded("{stop}{text}", instruction, "") == expected[1]


def test_an_instruction_of_two_tasks_is_refused() -> None:
    first, second = Instructions(("Add one",), ("Count on",)), Instructions(("Sort",), ("ADD one.",))
    with pytest.raises(UserError, match=r"'ADD one\.' is there twice: a \(seen\) and b \(unseen\)"):
        check_distinct({"a": first, "b": second})
    with pytest.raises(UserError, match=r"twice: a \(seen\) and a \(unseen\)"):
        check_distinct({"a": Instructions(("Add one",), ("Add one",))})


def test_a_missing_folder_is_named_with_its_repository(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(small / "induction/data/raw/execute")
    assert f"--induction {small / 'induction'}: has no folder data/raw/execute" in (message := fails(small, capsys))
    assert "the first repository" in message


def test_a_missing_file_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "vectors/files/two/after.json").unlink()
    assert "has no file after.json in files/one or files/two" in fails(small, capsys)


def test_a_missing_file_of_held_out_cases_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "induction/data/raw/execute/up.json").unlink()
    assert f"{small / 'induction/data/raw/execute/up.json'}: cannot be read" in fails(small, capsys)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"input": "a"}, "case 3: output: Field required"),
        ({"input": "a", "output": 7}, "case 3: output: Input should be a valid string"),
        ({"input": " ", "output": "b"}, "case 3: the input is blank"),
        ({"input": "a", "output": " "}, "case 3: the output is blank"),
    ],
)
def test_a_wrong_case_is_named(small: Path, capsys: pytest.CaptureFixture[str], case: Json, reason: str) -> None:
    write(small / "vectors/files/two/after.json", [*pairs("after", 2), case, *pairs("more", 90)])
    assert f"after.json: {reason}" in fails(small, capsys)


def test_too_few_cases_are_counted(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(small / "vectors/files/two/after.json", pairs("after", 69))
    expected = "task next: after.json has cases for 50 test rows and 19 samples; 50 and 20 are needed"
    assert expected in fails(small, capsys)


def test_too_few_instructions_are_counted() -> None:
    task = TaskPlan(domain="d", source="s", file="f", seen=("A b", "c"), unseen=("d", "e"))
    with pytest.raises(UserError, match="task t: 3 seen instructions, and 4 are needed"):
        instructions_of("t", task, ["a B.", "x"])


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("source", "elsewhere", "tasks.next.source: unknown source 'elsewhere' (known: induction, vectors)"),
        ("unseen", ["One more"], "tasks.next.unseen: Tuple should have at least 2 items"),
        ("sen", ["One more"], "tasks.next.sen: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_plan_is_named(
    small: Path, capsys: pytest.CaptureFixture[str], field: str, value: Json, reason: str
) -> None:
    plan = json.loads((small / "plan.yaml").read_text(encoding="utf-8"))
    plan["tasks"]["next"][field] = value
    write(small / "plan.yaml", plan)
    assert f"plan.yaml: {reason}" in fails(small, capsys)


def test_a_source_without_an_option_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = {**SMALL_PLAN["sources"], "third": SMALL_PLAN["sources"]["vectors"]}  # type: ignore[dict-item,index]
    write(small / "plan.yaml", {**SMALL_PLAN, "sources": sources})
    assert "plan.yaml: sources.third: unknown source (known: induction, vectors)" in fails(small, capsys)


@pytest.mark.parametrize("layout", ["{text}", "{stop}", "{stop} {colon} {text}"])
def test_a_layout_needs_the_text_and_one_instruction(
    small: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    plan = {**SMALL_PLAN, "layouts": [layout]}
    write(small / "plan.yaml", plan)
    assert f"layouts: {layout!r} needs {{text}}, and either {{colon}} or {{stop}}" in fails(small, capsys)


@pytest.mark.long
@pytest.mark.skipif(not (REAL / "function-vectors").is_dir(), reason="the sources are not beside the repository")
def test_the_real_sources_make_49_tasks_of_ten_domains_without_any_finding(tmp_path: Path) -> None:
    folders = ["--induction", str(REAL / "instruction-induction"), "--vectors", str(REAL / "function-vectors")]
    assert main([*folders, "--out", str(tmp_path)]) == 0
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert (card["counts"]["tasks"], card["counts"]["domains"], card["counts"]["rows"]) == (49, 10, 2450)
    rows = read_rows(tmp_path / "test.json")
    found = audit(rows, read_pool(tmp_path / "pool.json"))
    assert not (found.leaks or found.duplicates or found.shared_inputs or found.shared_samples)
    assert not (found.several_targets or found.empty_targets or found.other_domains or found.alike_names)
    assert not leaked_ids(rows, read_pool(tmp_path / "train.json"))
