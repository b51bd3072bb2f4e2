"""The audit names every row that needs a look before a score is computed from the row, and no other row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import TINY
from transformers import PreTrainedTokenizerBase

from lora_retriever.analysis.audit import EXAMPLE_LENGTH, audit, leaked_ids, measure_prompts, shortened, to_text
from lora_retriever.analysis.runs import AnsweredRow
from lora_retriever.cli import main
from lora_retriever.data.rows import PoolEntry, Row, Sample, read_pool, read_rows
from lora_retriever.generation.prompt import ALPACA


def row(id: int, task: str, inputs: str, targets: str, metric: str = "em", domain: str = "reading") -> Row:
    return Row(id=id, task=task, inputs=inputs, targets=targets, metric=metric, domain=domain)


def entry(name: str, *samples: tuple[str, str], domain: str = "reading") -> PoolEntry:
    sample = tuple(Sample(inputs=inputs, targets=targets) for inputs, targets in samples)
    return PoolEntry(model_name=name, domain=domain, sample=sample)


POOL = [
    entry("squad", ("Where is Rome?", "Italy"), ("Write a question.", "Why?")),
    entry("drop", ("How many?", "2"), ("Write a question.", "Who?")),
    entry("dart", ("Tell of Rome.", "Rome is old."), domain="data to text"),
    entry("cosmos", ("What next?", "Nothing.")),
]
ROWS = [
    row(0, "squad", "Where is Rome?", "Italy"),  # a sample of its own adapter, target and all
    row(1, "squad", "Write a\nquestion. ", "When?"),  # samples of two adapters, but for white space; three rows' inputs
    row(2, "drop", "Write a question.", "Whence?"),
    row(3, "drop", "Write a question.", "Whither?"),
    row(4, "squad", "Tell of Rome.", "Rome is a city."),  # a sample of another adapter only
    row(5, "dart", "Tell of Oslo.", "Oslo is cold.", "rouge", "data to text"),
    row(6, "dart", "Tell of  Oslo.", "Oslo is cold.\n", "rouge", "data to text"),  # row 5 once more
    row(7, "dart", "Tell of nothing.", " ", "rouge", "struct to text"),
    row(8, "dart", "Tell of dots.", ". ..", "rouge", "struct to text"),
    row(9, "piqa", "How to swim?", "\n\nMove.", domain="commonsense"),  # em cuts the target at the blank line
    row(10, "piqa", "how many?", "3", domain="commonsense"),  # another case is another text
]


def found() -> Any:
    """The findings about the rows and the pool above."""
    return audit(ROWS, POOL)


def test_inputs_in_the_pools_samples_are_leaks_whosever_the_samples_are() -> None:
    leaks = [(leak.id, leak.task, leak.adapters, leak.own, leak.same_target) for leak in found().leaks]
    assert leaks == [
        (0, "squad", ("squad",), True, True),
        (1, "squad", ("squad", "drop"), True, False),
        (2, "drop", ("squad", "drop"), True, False),
        (3, "drop", ("squad", "drop"), True, False),
        (4, "squad", ("dart",), False, False),
    ]


def test_leaked_ids_are_the_same_for_rows_and_for_answers_to_them() -> None:
    answers = [AnsweredRow(**r.model_dump(), predicted_answer="answer") for r in ROWS]
    assert leaked_ids(ROWS, POOL) == leaked_ids(answers, POOL) == {0, 1, 2, 3, 4}


def test_rows_without_inputs_are_no_leaks() -> None:
    """The original's result files may lack the inputs, and a pool's sample may be a mere space."""
    blank = AnsweredRow(id=0, targets="b", task="t", domain="d", metric="em", predicted_answer="c")
    assert leaked_ids([blank], [entry("t", (" ", "b"))]) == set()


def test_rows_that_are_there_twice_are_found() -> None:
    assert [(again.task, again.ids, again.targets) for again in found().duplicates] == [
        ("dart", (5, 6), ("Oslo is cold.",))
    ]


def test_inputs_of_several_tasks_and_samples_of_several_adapters_are_found() -> None:
    (inputs,) = found().shared_inputs
    assert inputs.ids == {"squad": (1,), "drop": (2, 3)}
    (sample,) = found().shared_samples
    assert (sample.inputs, sample.adapters) == ("Write a question.", ("squad", "drop"))


def test_a_task_that_asks_the_same_with_different_targets_is_found() -> None:
    (again,) = found().several_targets
    assert (again.task, again.ids, again.targets) == ("drop", (2, 3), ("Whence?", "Whither?"))


def test_several_targets_are_compared_and_shown_together() -> None:
    several = [
        Row(**{**ROWS[0].model_dump(), "id": id, "targets": targets})
        for id, targets in enumerate(
            [("Italy", "Italia"), ("Italy ", "Italia"), ("Italia", "Italy"), (" ", "."), (" ", "x")]
        )
    ]
    findings = audit(several, POOL)
    assert [again.ids for again in findings.duplicates] == [(0, 1)]
    (again,) = findings.several_targets
    assert again.targets == ("Italy | Italia", "Italia | Italy", "  | .", "  | x")
    assert [(target.id, target.kind) for target in findings.empty_targets] == [(3, "dots")]


def test_letters_of_two_unicode_forms_are_the_same_text() -> None:
    composed, decomposed = row(0, "squad", "caf\u00e9", "1"), row(1, "squad", "cafe\u0301", "1")
    assert [again.ids for again in audit([composed, decomposed], POOL).duplicates] == [(0, 1)]
    assert leaked_ids([composed], [entry("squad", ("cafe\u0301", "1"))]) == {0}


def test_names_that_look_alike_are_found() -> None:
    findings = audit([row(0, "Squad", "a", "b"), *ROWS], POOL)
    assert findings.alike_names == [["Squad", "squad"]]
    assert "    'Squad' and 'squad'" in to_text(findings).splitlines()


def test_targets_without_a_word_are_found() -> None:
    empty = [(target.id, target.metric, target.kind) for target in found().empty_targets]
    assert empty == [(7, "rouge", "blank"), (8, "rouge", "dots"), (9, "em", "blank")]


def test_tasks_and_adapters_that_do_not_meet_are_found() -> None:
    assert found().tasks_without_adapter == {"piqa": (9, 10)}
    assert found().adapters_without_rows == ["cosmos"]
    (other,) = found().other_domains
    assert (other.task, other.pool_domain, other.row_domains) == ("dart", "data to text", ("struct to text",))
    assert other.ids == (7, 8)


def test_the_page_counts_every_kind_and_names_its_rows() -> None:
    page = to_text(found())
    counts = [line.split(maxsplit=1) for line in page.split("\n\n")[1].splitlines()]
    assert [int(count) for count, _ in counts[:-1]] == [5, 2, 3, 1, 2, 3, 1, 1, 1, 0]
    assert counts[-1] == ["–", "prompts were not measured: name a --tokenizer"]
    for line in [
        "  different inputs: 3; in samples of the row's own adapter: 4; with the same target: 1",
        "  squad: 0-1, 4",
        "    Write a question. (samples of squad, drop)",
        "    drop 2-3: Write a question. → Whence? | Whither?",
        "  dart: struct to text (pool: data to text)",
    ]:
        assert line in page.splitlines()


def test_nothing_found_is_a_line_of_zeros_each_and_no_more() -> None:
    page = to_text(audit([row(0, "squad", "Where is Oslo?", "Norway")], [entry("squad", ("Where is Rome?", "Italy"))]))
    assert len(page.split("\n\n")) == 2


def test_examples_are_one_short_line() -> None:
    assert shortened(" one\ttwo\n\nthree ") == "one two three"
    long = shortened("word " * 100)
    assert len(long) <= EXAMPLE_LENGTH
    assert long.endswith("…")


@pytest.mark.slow
def test_long_prompts_are_measured_as_the_tokenizer_counts(
    tiny_rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = tiny_rows[::10]
    lengths = {row.id: len(tokenizer(ALPACA.replace("{inputs}", row.inputs))["input_ids"]) for row in rows}
    limit = sorted(lengths.values())[len(rows) // 2]
    measured = measure_prompts(rows, str(TINY / "base"), "alpaca", limit)
    expected = {id: (length, length - limit) for id, length in lengths.items() if length > limit}
    assert {prompt.id: (prompt.tokens, prompt.cut) for prompt in measured.too_long} == expected
    assert 0 < len(expected) < len(rows)
    assert f"{len(expected):>6}  rows whose prompt has more than {limit} tokens" in to_text(audit(rows, POOL, measured))


@pytest.mark.slow
def test_the_official_benchmark_has_64_leaks(official: Path) -> None:
    """A loop over all pairs of texts finds as many leaks. No leak has the target of its sample."""
    rows, pool = read_rows(official / "combined_test.json"), read_pool(official / "config2.json")
    samples = [(entry.model_name, sample) for entry in pool for sample in entry.sample]
    leaks = {row.id for row in rows if any(row.inputs == sample.inputs for _, sample in samples)}
    own = {row.id for row in rows if any((row.task, row.inputs) == (name, s.inputs) for name, s in samples)}
    assert len(leaks) == 64
    assert leaked_ids(rows, pool) == leaks
    found = audit(rows, pool)
    assert {leak.id for leak in found.leaks} == leaks
    assert {leak.id for leak in found.leaks if leak.own} == own
    assert not any(leak.same_target for leak in found.leaks)
    assert [target.id for target in found.empty_targets] == [850, 855, 866]
    assert not found.duplicates
    assert [text.inputs for text in found.shared_inputs] == ["Write a sentence not in English."]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The arguments that name the rows and the pool above, written out as a user's files."""
    (tmp_path / "rows.json").write_text(json.dumps([row.model_dump(exclude={"id"}) for row in ROWS]))
    (tmp_path / "pool.json").write_text(json.dumps([entry.model_dump() for entry in POOL]))
    return [str(tmp_path / "rows.json"), "--pool", str(tmp_path / "pool.json")]


def test_the_command_prints_the_page_and_writes_all_of_it_as_json(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *files, "--json", str(tmp_path / "audit.json")]) == 0
    assert capsys.readouterr().out == to_text(found())
    written = json.loads((tmp_path / "audit.json").read_text())
    assert {key: written[key] for key in ("rows", "tasks", "adapters", "samples")} == {
        "rows": 11, "tasks": 4, "adapters": 4, "samples": 6,
    }  # fmt: skip
    assert [leak["id"] for leak in written["leaks"]] == [0, 1, 2, 3, 4]
    assert written["leaks"][4] == {
        "id": 4,
        "task": "squad",
        "inputs": "Tell of Rome.",
        "adapters": ["dart"],
        "own": False,
        "same_target": False,
    }
    assert written["prompts"] is None
    assert written["tasks_without_adapter"] == {"piqa": [9, 10]}


def test_the_command_says_which_fields_are_not_used(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row.model_dump(), "source": {"web": 1}, "split": "test"} for row in ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main(["audit", *files]) == 0
    captured = capsys.readouterr()
    said = captured.err.replace("\n", " ")
    assert "rows.json: further fields of rows, which only --by uses: split" in said
    assert "rows.json: fields of rows that are not used: source" in said
    assert captured.out == to_text(found())


@pytest.mark.slow
def test_the_command_measures_prompts_by_a_tokenizer(files: list[str], tmp_path: Path) -> None:
    written = tmp_path / "audit.json"
    measure = ["--tokenizer", str(TINY / "base"), "--template", "{inputs}", "--max-prompt-tokens", "3"]
    assert main(["audit", *files, *measure, "--json", str(written)]) == 0
    prompts = json.loads(written.read_text())["prompts"]
    assert (prompts["template"], prompts["max_tokens"]) == ("{inputs}", 3)
    assert {prompt["id"] for prompt in prompts["too_long"]} >= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json", "--pool", "POOL"], "nowhere.json: cannot be read"),
        (["ROWS", "--pool", "nowhere.json"], "nowhere.json: cannot be read"),
        (["POOL", "--pool", "POOL"], "pool.json: row 1: field 'inputs': is missing"),
        (["ROWS", "--pool", "POOL", "--tokenizer", "FOLDER"], "cannot be loaded"),
        (["ROWS", "--pool", "POOL", "--tokenizer", "BASE", "--template", "vicuna"], "unknown template 'vicuna'"),
        (["ROWS", "--pool", "POOL", "--tokenizer", "BASE", "--max-prompt-tokens", "2"], "--max-prompt-tokens is too"),
        (["ROWS", "--pool", "POOL", "--max-prompt-tokens", "0"], "must be 1 or more"),
        (["ROWS", "--pool", "POOL", "--json", "/proc/nowhere"], "/proc/nowhere: cannot be written"),
        (["ROWS"], "--pool"),
    ],
)
def test_what_cannot_be_audited_exits_with_2(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"ROWS": files[0], "POOL": files[2], "FOLDER": str(tmp_path), "BASE": str(TINY / "base")}
    try:
        status = main(["audit", *(places.get(argument, argument) for argument in arguments)])
    except SystemExit as exit:  # argparse's own
        status = int(exit.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
