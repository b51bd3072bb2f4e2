"""Rows that procedures answer: stages, resuming, failing rows, adapters retrieved anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import TINY
from tiny_runs import QUIET, lines_of, write_profile
from transformers import PreTrainedTokenizerBase

from lora_retriever.cli import main
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.generation.loop import Job, Loop
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.stages import StageFile

TOY = '''
from lora_retriever.procedures import Ask, Procedure

def twice(row):
    """Ask, and ask again for the first word of the answer, with adapters retrieved for the answer."""
    draft = yield Ask(row.inputs)
    if "explode" in row.inputs:
        raise ZeroDivisionError("as asked")
    first, second = yield [Ask(f"{row.inputs} {draft}"), Ask(row.inputs, query=f"{draft} {row.inputs}")]
    return f"{draft}; {first}; {second}"

def shouting(row):
    return (yield Ask(row.inputs, task="People_QA"))

TWICE = Procedure("twice", "an answer, then two answers that read the first", "a toy", twice)
SHOUTING = Procedure("shouting", "a question whose task is in another case", "a toy", shouting)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_masked_adapters_stay_masked_where_adapters_are_retrieved_anew(whole: Path) -> None:
    for line in lines_of(whole, "mixture_ood"):
        assert all(line["task"] not in reply["adapters"] for stage in line["stages"] for reply in stage)


@pytest.mark.slow
def test_a_question_whose_own_adapter_is_spelled_otherwise_is_not_answered(place: Path, tmp_path: Path) -> None:
    profile = changed(place, procedure="toy_procedure:SHOUTING")
    with pytest.raises(
        RowsFailedError, match=r"row 0: stage 1: .*cannot be masked: the pool's 'people_qa' differs only"
    ):
        evaluate(profile, ["uniform_ood"], tmp_path, 1, QUIET)


@pytest.mark.slow
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


@pytest.mark.long
@pytest.mark.parametrize("written", [1, 8])
def test_a_run_that_was_killed_goes_on_to_the_same_files(
    place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    original, count = StageFile.add, 0

    def dies(self: StageFile, *arguments: Any, **named: Any) -> None:
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        original(self, *arguments, **named)

    profile = load_profile(f"{place}/mine.yaml")
    monkeypatch.setattr(StageFile, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(profile, NAMES.split(","), tmp_path, None, QUIET)
    with (tmp_path / "selection.stages.partial").open("ab") as file:
        file.write(b'{"row": 3, "stage": 1, "que')  # a line that was half written
    monkeypatch.setattr(StageFile, "add", original)
    evaluate(profile, NAMES.split(","), tmp_path, None, QUIET)
    for name in NAMES.split(","):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (whole / f"{name}.jsonl").read_bytes()
    assert not [*tmp_path.glob("*.partial")]


@pytest.mark.slow
def test_a_failing_stage_costs_its_row_alone_and_is_tried_again(
    place: Path, whole: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = lines_of(whole, "selection")[2]["stages"][1][0]["inputs"]
    wanted = tokenizer(victim, add_special_tokens=False)["input_ids"]
    original = Loop.add

    def fails(self: Loop, job: Job) -> int:
        ids = list(job.prompt)
        if any(ids[start : start + len(wanted)] == wanted for start in range(len(ids))):
            raise UserError("no such luck")
        return original(self, job)

    profile = load_profile(f"{place}/mine.yaml")
    monkeypatch.setattr(Loop, "add", fails)
    with pytest.raises(RowsFailedError, match="selection: row 2: stage 2: no such luck"):
        evaluate(profile, ["selection"], tmp_path, None, QUIET)
    assert [line["id"] for line in lines_of(tmp_path, "selection")] == [0, 1, 3, 4, 5]
    monkeypatch.setattr(Loop, "add", original)
    evaluate(profile, ["selection"], tmp_path, None, QUIET)
    assert lines_of(tmp_path, "selection") == lines_of(whole, "selection")


@pytest.mark.slow
def test_an_error_of_a_procedure_costs_its_row_alone(place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / "rows.json").read_text())[:2]
    rows[1]["inputs"] += " explode"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = {"rows": str(tmp_path / "rows.json"), "pool": f"{TINY}/pool.json"}
    with pytest.raises(RowsFailedError, match="row 1: stage 2: ZeroDivisionError: as asked"):
        evaluate(changed(place, data=data), ["base"], tmp_path / "results", None, QUIET)
    assert "Traceback" in (tmp_path / "results" / "errors.log").read_text()
    assert [line["id"] for line in lines_of(tmp_path / "results", "base")] == [0]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_doctor_names_an_unknown_procedure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(place, procedure="stepz")
    assert main(["doctor", "--profile", f"{place}/changed.yaml", "--results", f"{place}/none"]) == 2
    assert "procedure: unknown procedure 'stepz'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_sweep_compares_procedures(place: Path, tmp_path: Path) -> None:
    profile = changed(place, procedure="plain", procedure_options={"steps": {"max_steps": 1}})
    evaluate(profile, ["base"], tmp_path, 1, QUIET, sweep=["procedure=plain,steps"])
    assert "stages" not in lines_of(tmp_path, "base@procedure=plain")[0]
    assert "stages" in lines_of(tmp_path, "base@procedure=steps")[0]


@pytest.mark.slow
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
