"""The scripts that make rows and pools of plans and of relations, on small files in the form of the published data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from procedures import build_plans, build_relations, plan_yardsticks
from procedures.relation_data import read_redocred

from lora_retriever.data.rows import Row, read_pool, read_rows
from lora_retriever.procedures import Detect, find_procedure

TABLE = (
    "id, object_type, position_x [SEP] 0, Agent, 0, 0, 0, 0, 0, 0,  [SEP] 1, Mug, 1, 0, 0, 0, 0, 0, 2 [SEP] "
    "2, Desk, 1, 0, 0, 0, 0, 0, "
)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def gplanet(tmp_path: Path) -> Path:
    folder = tmp_path / "gplanet"
    folder.mkdir()
    plans = ["STEP 1: Walk to the desk. | STEP 2: Pick up the mug. | END", "STEP 1: Turn on the lamp. | END"]
    for split in ("tests_seen", "tests_unseen", "valid_seen", "valid_unseen"):
        for end, table in (("", ""), ("_table_seq", f" SCENE DESCRIPTION: {TABLE}")):
            lines = [
                {"id": f"trial_{split}-{n}", "input": f"{split} take the mug {n}{table}", "output": [plan]}
                for n, plan in enumerate(plans)
            ]
            write_lines(folder / f"{split}{end}.jsonl", lines)
    return folder


def test_plans_become_rows_by_rooms_and_pools_of_whole_plans_and_steps(gplanet: Path, tmp_path: Path) -> None:
    out = tmp_path / "plans"
    assert build_plans.main(["--gplanet", str(gplanet), "--out", str(out), "--table", "sorted"]) == 0
    rows = read_rows(out / "test.json")
    assert [(row.further["rooms"], row.further["trial"]) for row in rows] == [
        (rooms, f"trial_tests_{rooms}") for rooms in ("seen", "unseen") for _ in range(2)
    ]
    assert rows[0].inputs == "tests_seen take the mug 0 SCENE DESCRIPTION: Mug 1.0 0.0 Desk; Desk 1.0 0.0"
    assert [len(read_pool(out / f"{name}.json")[0].sample) for name in ("plans", "steps")] == [4, 4]
    pool = read_pool(out / "phases.json")
    phases = {entry.model_name: [sample.target for sample in entry.sample] for entry in pool}
    assert phases["gplanet_go"] == ["STEP 1: Walk to the desk."] * 2
    assert phases["gplanet_take"] == ["STEP 2: Pick up the mug.", "END"] * 2
    assert phases["gplanet_change"] == ["STEP 1: Turn on the lamp.", "END"] * 2
    assert len(phases) == 3
    assert plan_yardsticks.main(["--plans", str(out), "--results", str(tmp_path / "results")]) == 0
    other = (tmp_path / "results" / "other_annotator.jsonl").read_text().splitlines()
    assert json.loads(other[0])["predicted_answer"] == rows[1].target


def test_a_broken_file_of_plans_is_named(gplanet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(gplanet / "valid_seen.jsonl", [{"id": "a-0", "input": "take it"}])
    assert build_plans.main(["--gplanet", str(gplanet), "--out", str(tmp_path / "out")]) == 2
    assert "valid_seen.jsonl: row 1: is no row of G-PlanET" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_knowledgenet_is_divided_by_folds(tmp_path: Path) -> None:
    mention = {"em1Text": "Acme", "label": "CEO", "em2Text": "Ann | Bo", "em1Start": 0, "em2Start": 9}
    lines = [
        {
            "id": str(fold),
            "fold": fold,
            "sentText": f"Acme  of Ann {fold}",
            "relationMentions": [mention],
            "negativeLabels": [],
        }
        for fold in (1, 2, 3, 4)
    ]
    write_lines(tmp_path / "knowledgenet.jsonl", lines)
    arguments = ["--knowledgenet", str(tmp_path / "knowledgenet.jsonl"), "--out", str(tmp_path / "out"), "--fold", "1"]
    assert build_relations.main(arguments) == 0
    (row,) = read_rows(tmp_path / "out" / "test.json")
    assert (row.inputs, row.targets) == ("Acme of Ann 1", "CEO | Acme | Ann / Bo")
    (detect,) = read_pool(tmp_path / "out" / "detect.json")
    assert [sample.inputs[-1] for sample in detect.sample] == ["2", "3", "4"]  # fold 4 validates
    (each,) = read_pool(tmp_path / "out" / "each.json")
    assert each.model_name == "knowledgenet_CEO"
    assert [(sample.inputs, sample.target) for sample in each.sample] == [
        (f"CEO | Acme of Ann {fold}", "Acme | Ann / Bo") for fold in (2, 3)
    ]


def test_extraction_samples_are_grouped_by_what_their_objects_are(tmp_path: Path) -> None:
    def mention(label: str) -> dict[str, Any]:
        return {"em1Text": "Ann", "label": label, "em2Text": "1999", "em1Start": 0, "em2Start": 9}

    labels = ["DATE_OF_BIRTH", "SPOUSE", "DATE_OF_DEATH"]
    lines = [
        {"fold": fold, "sentText": f"Ann {fold}", "relationMentions": list(map(mention, labels)), "negativeLabels": []}
        for fold in (1, 2, 3, 4)
    ]
    write_lines(tmp_path / "knowledgenet.jsonl", lines)
    arguments = ["--knowledgenet", str(tmp_path / "knowledgenet.jsonl"), "--fold", "1", "--out"]
    assert build_relations.main([*arguments, str(tmp_path / "out")]) == 0
    pool = {entry.model_name: entry.sample for entry in read_pool(tmp_path / "out" / "groups.json")}
    assert {name: len(samples) for name, samples in pool.items()} == {
        "knowledgenet_DATES": 4,
        "knowledgenet_PEOPLE": 2,
    }
    assert {sample.inputs for sample in pool["knowledgenet_PEOPLE"]} == {"SPOUSE | Ann 2", "SPOUSE | Ann 3"}
    joined = read_pool(tmp_path / "out" / "pool_groups.json")
    assert joined == [*read_pool(tmp_path / "out" / "detect.json"), *read_pool(tmp_path / "out" / "groups.json")]


@pytest.mark.slow
def test_triples_are_dropped_from_training_sentences_alone(tmp_path: Path) -> None:
    mention = {"em1Text": "Ann", "label": "SPOUSE", "em2Text": "Bo", "em1Start": 0, "em2Start": 9}
    lines = [
        {"fold": n % 4 + 1, "sentText": f"Ann {n}", "relationMentions": [mention], "negativeLabels": []}
        for n in range(400)
    ]
    write_lines(tmp_path / "knowledgenet.jsonl", lines)
    arguments = ["--knowledgenet", str(tmp_path / "knowledgenet.jsonl"), "--drop", "0.5", "--out"]
    assert build_relations.main([*arguments, str(tmp_path / "out"), "--validation", "100"]) == 0
    (detect,) = read_pool(tmp_path / "out" / "detect.json")
    train, validation = detect.sample[:200], detect.sample[200:]
    assert len(train) == 200  # emptied sentences stay
    assert 70 < sum(bool(sample.target) for sample in train) < 130
    assert all(sample.target for sample in validation)
    assert all(row.targets for row in read_rows(tmp_path / "out" / "test.json"))


def test_a_sentence_of_redocred_has_the_triples_that_it_mentions(tmp_path: Path) -> None:
    def mention(name: str, sentence: int, start: int) -> dict[str, Any]:
        return {"name": name, "sent_id": sentence, "pos": [start, start + 1]}

    document = {
        "sents": [["Loud", "is", "by", "Ann", "."], ["She", "sings", "Loud", "."]],
        "vertexSet": [[mention("Loud", 0, 0), mention("Loud", 1, 2)], [mention("Ann", 0, 3)]],
        "labels": [{"r": "P175", "h": 0, "t": 1, "evidence": [0]}, {"r": "P1", "h": 1, "t": 0, "evidence": []}],
    }
    (tmp_path / "dev.json").write_text(json.dumps([document]))
    first, second = read_redocred(tmp_path / "dev.json", {"P175": "performer"})
    assert first.text == "Loud is by Ann ."
    assert first.triples == (("performer", "Loud", "Ann"), ("P1", "Ann", "Loud"))
    assert second.triples == ()


def test_detection_alone_predicts_a_triple_without_arguments_for_each_relation() -> None:
    alone = find_procedure("detection_alone:ALONE", ROOT / "docs" / "results")
    assert alone.detects
    row = Row(id=0, inputs="Ann leads Acme.", targets="CEO | Acme | Ann", task="t", domain="d", metric="triples")
    talk = alone.talk(row)
    assert next(talk) == Detect("Ann leads Acme.")
    with pytest.raises(StopIteration) as end:
        talk.send(("CEO", "SPOUSE"))
    assert end.value.value == "CEO | ? | ?\nSPOUSE | ? | ?"
