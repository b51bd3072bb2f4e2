"""The page on procedures: its toy procedure works as the page says, and the page's own test of the toy passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from lora_retriever.data.rows import Row
from lora_retriever.procedures import Ask, find_procedure

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "procedures.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_file_of_the_page_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "twice.py").write_text(BLOCKS[0], encoding="utf-8")
    twice = find_procedure("twice:TWICE", tmp_path)
    assert twice.name == "twice"
    talk = twice.talk(Row(id=3, inputs="a?", targets="b", task="t", domain="d", metric="em"))
    asked = [next(talk), talk.send("c")]
    assert asked == [Ask("a?"), Ask("a?\nA first answer: c\nA better answer:")]
    with pytest.raises(StopIteration) as end:
        talk.send("b")
    assert end.value.value == "b"


def test_the_pages_own_test_passes_and_fails_for_another_procedure() -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)
    names["test_the_second_question_shows_the_first_answer"]()

    def once(row: Row) -> Any:
        answer = yield Ask(row.inputs)
        return answer

    names["ask_twice"] = once
    with pytest.raises((AssertionError, StopIteration)):
        names["test_the_second_question_shows_the_first_answer"]()
