"""`lora-retriever prompts` shows the prompts of a profile's rows, and loads no model weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import write_profile
from tokenizers_made import byte_level

from lora_retriever.cli import main

CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_end|>' + message['role'] + '\n' + message['content'] + "
    "'\n' }}{% endfor %}{{ '<|im_end|>assistant\n' }}"
)
ROWS = [("one", "what is </s> ?"), ("two", "a \x1b[31mred\x1b[0m lamp"), ("two", "the farmer plants wheat. " * 20)]


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """A profile whose base has a tokenizer and no model weights, with three rows of two tasks."""
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"inputs": text, "targets": "x", "task": task, "domain": "d", "metric": "em"} for task, text in ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    generation = {"template": "chat", "system": "Be brief.", "max_prompt_tokens": 90, "max_new_tokens": 10}
    data = {"rows": "rows.json", "pool": "no such pool.json"}
    return write_profile(tmp_path, base={"location": "./base"}, data=data, generation=generation)


def test_special_tokens_are_marked_and_the_text_of_a_row_is_not(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "--profile", profile, "--rows", "1"]) == 0
    title, *prompt = capsys.readouterr().out.splitlines()
    assert title.startswith("row 0, task one: ")
    assert prompt == [
        "⟦<s>⟧⟦<|im_end|>⟧system",
        "Be brief.",
        "⟦<|im_end|>⟧user",
        "what is </s> ?",
        "⟦<|im_end|>⟧assistant",
        "",
    ]


def test_rows_of_a_task_are_shown_with_what_was_cut(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "--profile", profile, "--task", "two"]) == 0
    said = capsys.readouterr().out
    assert "row 0" not in said
    assert "\na \\x1b[31mred\\x1b[0m lamp\n" in said, "nothing in a row acts on the terminal"
    last = said.split("row 2, task two: ")[1]
    assert last.startswith("90 tokens\n")
    shown = last.split("⟦<|im_end|>⟧user\n")[1].split("\n⟦<|im_end|>⟧assistant\n")[0]
    cut = last.split("cut from the end of the input: ")[1]
    whole = len(byte_level()(ROWS[2][1])["input_ids"]) - 1  # without the BOS token
    lost = whole - len(byte_level()(shown)["input_ids"]) + 1
    assert cut.startswith(f"{lost} tokens, '{ROWS[2][1].removeprefix(shown)[:50]}")


def test_tokens_are_listed_with_their_ids(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "--profile", profile, "--rows", "1", "--tokens", "--set", "generation.system=null"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split(maxsplit=1) for line in lines if line.startswith("     ")]
    assert listed[:2] == [["1", "'<s>'"], ["4", "'<|im_end|>'"]]
    tokens = byte_level().decode([int(id) for id, _ in listed])
    assert tokens == "<s><|im_end|>user\nwhat is </s> ?\n<|im_end|>assistant\n"
    assert lines[0] == f"row 0, task one: {len(listed)} tokens"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "three"], "has no row of the task 'three'"),
        (["--set", "generation.template=none"], "generation.system: only the template chat takes a system prompt"),
        (["--set", "generation.max_prompt_tokens=5"], "generation.max_prompt_tokens is too small"),
    ],
)
def test_a_mistake_is_one_line(
    profile: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "--profile", profile, *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out


@pytest.mark.parametrize(("template", "more"), [("chat", {"*.jinja"}), ("alpaca", set())])
def test_of_a_base_on_the_hub_only_the_tokenizer_is_fetched(
    profile: str, template: str, more: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chat template would change the base's hash, so this file is fetched only if the profile uses the template."""
    asked: list[set[str]] = []

    def fetched(name: str, allow_patterns: list[str], **_: object) -> str:
        asked.append(set(allow_patterns))
        return str(Path(profile).parent / "base")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    changes = ["base.location=some/model", f"generation.template={template}", "generation.system=null"]
    assert main(["prompts", "--profile", profile, *(word for change in changes for word in ("--set", change))]) == 0
    assert asked == [{"*.json", "*.txt", "*.model"} | more]
