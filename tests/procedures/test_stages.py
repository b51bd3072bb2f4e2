"""Rows that procedures answer: stages, resuming, failing rows, adapters retrieved anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import TINY
from tiny_runs import QUIET, before_reading, lines_of, write_profile
from transformers import PreTrainedTokenizerBase

from lora_retriever.cli import main
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.running.evaluate import evaluate

TOY = '''
from lora_retriever.procedures import Ask, Procedure

def twice(row):
    """Ask, and ask again for the first word of the answer, with adapters retrieved for the answer."""
    draft = yield Ask(row.inputs)
    if "explode" in row.inputs:
        raise ZeroDivisionError("as asked")
    first, second = yield [Ask(f"{row.inputs} {draft}"), Ask(row.inputs, query=f"{draft} {row.inputs}")]
    return f"{draft}; {first}; {second}"

TWICE = Procedure("twice", "an answer, then two answers that read the first", "a toy", twice)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy procedure, six rows, and a profile that answers the rows by the procedure."""
    folder = tmp_path_factory.mktemp("procedures")
    (folder / "toy_procedure.py").write_text(TOY)
    rows = json.loads((TINY / "test.json").read_text())[:600:100]
    (folder / "rows.json").write_text(json.dumps(rows))
    write_profile(
        folder,
        data={"rows": str(folder / "rows.json"), "pool": f"{TINY}/pool.json"},
        generation={"batch_size": 2, "max_new_tokens": 6},
        procedure="toy_procedure:TWICE",
    )
    return folder


def changed(place: Path, **fields: Any) -> Profile:
    content = {**yaml.safe_load((place / "mine.yaml").read_text()), **fields}
    path = place / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_profile(str(path))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The rows answered under two methods, without interruption."""
    assert main(["run", "-q", "--profile", f"{place}/mine.yaml", "--results", f"{place}/whole", "--only", NAMES]) == 0
    return place / "whole"


NAMES = "selection,mixture_ood"


def test_a_row_is_answered_stage_by_stage_and_keeps_its_stages(whole: Path) -> None:
    lines = lines_of(whole, "selection")
    assert [line["id"] for line in lines] == [*range(6)]
    for line in lines:
        (draft,), (first, second) = line["stages"]
        assert line["procedure"] == "toy_procedure:TWICE"
        assert first["inputs"] == f"{line['inputs']} {draft['answer']}"
        assert second["query"] == f"{draft['answer']} {line['inputs']}"
        assert line["predicted_answer"] == f"{draft['answer']}; {first['answer']}; {second['answer']}"
        assert draft["adapters"] == first["adapters"] == line["adapters"]
        assert line["generated_tokens"] == sum(one["generated_tokens"] for one in (draft, first, second))
    assert not [*whole.glob("*.partial")]


def test_masked_adapters_stay_masked_where_adapters_are_retrieved_anew(whole: Path) -> None:
    for line in lines_of(whole, "mixture_ood"):
        assert all(line["task"] not in reply["adapters"] for stage in line["stages"] for reply in stage)


def test_the_answers_are_those_of_plain_rows_with_the_same_prompts(place: Path, whole: Path) -> None:
    lines = lines_of(whole, "selection")
    rows = [
        {**{name: line[name] for name in ("targets", "task", "domain", "metric")}, "inputs": reply["inputs"]}
        for line in lines
        for reply in (line["stages"][0][0], line["stages"][1][0])
    ]
    (place / "asked.json").write_text(json.dumps(rows))
    data = {"rows": str(place / "asked.json"), "pool": f"{TINY}/pool.json"}
    evaluate(changed(place, procedure="plain", data=data), ["best_selection"], place / "plain", None, QUIET)
    plain = [line["predicted_answer"] for line in lines_of(place / "plain", "best_selection")]
    own = [reply for line in lines for reply in (line["stages"][0][0], line["stages"][1][0])]
    same = [a == b["answer"] for a, b, row in zip(plain, own, rows, strict=True) if b["adapters"] == [row["task"]]]
    assert same
    assert all(same)


@pytest.mark.slow
@pytest.mark.parametrize("readings", [1, 3])
def test_a_run_that_was_killed_goes_on_to_the_same_files(
    place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: int
) -> None:
    results, left = tmp_path / "results", iter(range(readings))

    def die(prompts: list[list[int]]) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    profile = load_profile(f"{place}/mine.yaml")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_reading(patch, die)
        evaluate(profile, NAMES.split(","), results, None, QUIET)
    with (results / "selection.stages.partial").open("ab") as file:
        file.write(b'{"row": 3, "stage": 1, "que')  # a line that was half written
    evaluate(profile, NAMES.split(","), results, None, QUIET)
    for name in NAMES.split(","):
        assert (results / f"{name}.jsonl").read_bytes() == (whole / f"{name}.jsonl").read_bytes()
    assert not [*results.glob("*.partial")]


def test_a_failing_stage_costs_its_row_alone_and_is_tried_again(
    place: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    victim = lines_of(whole, "selection")[2]["stages"][1][0]["inputs"]
    wanted = tokenizer(victim, add_special_tokens=False)["input_ids"]

    def fail(prompts: list[list[int]]) -> None:
        for ids in prompts:
            if any(ids[i : i + len(wanted)] == wanted for i in range(len(ids))):
                raise UserError("no such luck")

    profile = load_profile(f"{place}/mine.yaml")
    with (
        monkeypatch.context() as patch,
        pytest.raises(RowsFailedError, match="selection: row 2: stage 2: no such luck"),
    ):
        before_reading(patch, fail)
        evaluate(profile, ["selection"], tmp_path, None, QUIET)
    assert [line["id"] for line in lines_of(tmp_path, "selection")] == [0, 1, 3, 4, 5]
    evaluate(profile, ["selection"], tmp_path, None, QUIET)
    assert lines_of(tmp_path, "selection") == lines_of(whole, "selection")


def test_an_error_of_a_procedure_costs_its_row_alone(place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / "rows.json").read_text())[:2]
    rows[1]["inputs"] += " explode"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = {"rows": str(tmp_path / "rows.json"), "pool": f"{TINY}/pool.json"}
    with pytest.raises(RowsFailedError, match="row 1: stage 2: ZeroDivisionError: as asked"):
        evaluate(changed(place, data=data), ["base"], tmp_path / "results", None, QUIET)
    assert "Traceback" in (tmp_path / "results" / "errors.log").read_text()
    assert [line["id"] for line in lines_of(tmp_path / "results", "base")] == [0]


def test_a_row_names_its_procedure_but_never_code(place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / "rows.json").read_text())[:2]
    rows[1]["procedure"] = "steps"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = {"rows": str(tmp_path / "rows.json"), "pool": f"{TINY}/pool.json"}
    profile = changed(place, data=data, procedure="plain", procedure_options={"steps": {"max_steps": 2}})
    evaluate(profile, ["base"], tmp_path / "results", None, QUIET)
    plain, steps = lines_of(tmp_path / "results", "base")
    assert "stages" not in plain
    assert steps["procedure"] == "steps"
    assert 1 <= len(steps["stages"]) <= 2
    for name, message in {"toy_procedure:TWICE": "only a profile", "stepz": "unknown procedure 'stepz'"}.items():
        rows[1]["procedure"] = name
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        with pytest.raises(UserError, match=rf"row 2: field 'procedure'.*{message}"):
            evaluate(profile, ["base"], tmp_path / "other", None, QUIET)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"procedure": "stepz"}, "unknown procedure 'stepz'"),
        ({"procedure": "steps", "procedure_options": {"steps": {"max_step": 2}}}, "no option 'max_step'"),
        ({"procedure": "steps", "procedure_options": {"steps": {"max_steps": 0}}}, "option max_steps is 0"),
        ({"procedure": "toy_procedure:twice"}, "expected a lora_retriever.procedures.Procedure"),
    ],
)
def test_an_unknown_procedure_or_option_is_refused(
    place: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(changed(place, **fields), ["base"], tmp_path, None, QUIET)


def test_the_doctor_names_an_unknown_procedure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(place, procedure="stepz")
    assert main(["doctor", "--profile", f"{place}/changed.yaml", "--results", f"{place}/none"]) == 2
    assert "procedure: unknown procedure 'stepz'" in " ".join(capsys.readouterr().out.split())


def test_a_sweep_compares_procedures(place: Path, tmp_path: Path) -> None:
    profile = changed(place, procedure="plain", procedure_options={"steps": {"max_steps": 1}})
    evaluate(profile, ["base"], tmp_path, 1, QUIET, sweep=["procedure=plain,steps"])
    assert "stages" not in lines_of(tmp_path, "base@procedure=plain")[0]
    assert "stages" in lines_of(tmp_path, "base@procedure=steps")[0]


def test_other_runs_give_their_answers_to_the_questions_of_a_procedure(
    whole: Path, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "results")
    evaluate(load_profile(f"{place}/mine.yaml"), ["best_selection"], tmp_path / "results", None, QUIET)
    theirs = {line["id"]: line for line in lines_of(whole, "selection")}
    own = [
        (reply, theirs[line["id"]]["stages"][0][0])
        for line in lines_of(tmp_path / "results", "best_selection")
        for reply in line["stages"][0]
    ]
    assert all(a == b for a, b in own if a["adapters"] == b["adapters"])
