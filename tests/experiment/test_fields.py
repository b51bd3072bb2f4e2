"""The fields of a profile in words: the page of all fields, and one profile with the sources of its values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from places import ROOT
from tiny_runs import write_profile

from lora_retriever.experiment.fields import profile_fields, reference, with_sources
from lora_retriever.experiment.profile import load_profile


def test_the_page_in_the_documentation_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "profile-fields.md").read_text(encoding="utf-8")
    assert page == reference(), "lora-retriever profile --fields > docs/profile-fields.md makes the page anew"


@pytest.mark.slow
def test_every_field_has_a_meaning_and_what_it_may_be() -> None:
    fields = {field.name: field for field in profile_fields()}
    assert all(field.meaning and field.kind for field in fields.values())
    assert "folder" not in fields
    assert (fields["retrieval.k"].kind, fields["retrieval.k"].default) == ("whole number from 1 to 16,777,216", "3")
    assert fields["generation.batch_tokens"].kind == "whole number from 1 to 2,147,483,648 or null"
    assert fields["dtype"].kind == "float32, bfloat16, float16"
    assert fields["seed"].kind == "whole number from 0 to 4,294,967,295"
    assert fields["base.location"].default is None
    assert "commit" in fields["encoder.revision"].meaning, "from the class that the section extends"


@pytest.mark.slow
def test_a_table_cell_cannot_break_the_page() -> None:
    for line in reference().splitlines()[6:]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 5, line
        assert "None" not in line


def sources(text: str) -> dict[str, str]:
    """The source of every value, by the name of its field."""
    found, section = {}, ""
    for line in text.splitlines():
        if match := re.fullmatch(r"(  )?(\w+):( .*  # (.*))?", line):
            if match[4]:
                found[f"{section}.{match[2]}" if match[1] else match[2]] = match[4]
            else:
                section = match[2]
    return found


@pytest.mark.slow
def test_every_value_has_its_source() -> None:
    said = sources(with_sources("tiny", ["retrieval.k=5", "options.lorahub.steps=3"]))
    assert said.keys() == {field.name for field in profile_fields()}
    assert {name for name, source in said.items() if source == "--set"} == {"retrieval.k", "options"}
    written = yaml.safe_load((ROOT / "lora_retriever" / "profiles" / "tiny.yaml").read_text())
    flat = {
        f"{name}.{inner}" if isinstance(value, dict) and name != "options" else name
        for name, value in written.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert {name for name, source in said.items() if source == "profile"} == flat - {"retrieval.k", "options"}


def test_what_is_printed_is_a_profile_again(tmp_path: Path) -> None:
    first = load_profile(write_profile(tmp_path), ["note=a # b: 'c'", "seed=7", "metrics=[./m]"])
    path = tmp_path / "again.yaml"
    path.write_text(with_sources(str(tmp_path / "mine.yaml"), ["note=a # b: 'c'", "seed=7", "metrics=[./m]"]))
    assert load_profile(str(path)) == first
