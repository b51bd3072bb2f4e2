"""Every command has examples that work, lists the names that its arguments take, and completes these names."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from lora_retriever.cli import build_parser, main
from lora_retriever.commands import commands
from lora_retriever.retrieval.scorers import SCORERS


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_the_examples_of_a_command_are_calls_of_the_command(name: str) -> None:
    calls = [shlex.split(line, comments=True) for line in commands()[name].EXAMPLES.strip().splitlines()]
    assert calls
    for program, *arguments in calls:
        assert program == "lora-retriever"
        assert arguments[0] == name
        build_parser().parse_args(arguments)


def help_of(capsys: pytest.CaptureFixture[str], name: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_every_help_text_ends_with_examples_and_exit_statuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(capsys, name)
    for line in commands()[name].EXAMPLES.strip().splitlines():
        assert line in said
    assert said.index("examples:") < said.index("exit status:\n  0 ")


@pytest.mark.slow
def test_a_help_text_names_the_known_names_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(capsys, "run")
    assert "bundled profiles:\n  instructions, instructions-llama2-7b, llama2-13b, llama2-7b, tiny, tiny-" in said
    methods = said.split("\nmethods:\n")[1].split("\n\n")[0].replace("\n", " ").replace("  ", " ").split(", ")
    assert {"paper", "base", "mixture", "lorahub_ood"} <= {name.strip() for name in methods}
    assert f"scorers:\n  {', '.join(SCORERS)}\n" in help_of(capsys, "retrieval")


def completed(line: str) -> set[str]:
    """The words that the shell offers after a line, by argcomplete's protocol: the answer comes on descriptor 8."""
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><;|&(",
    }
    code = "from lora_retriever.cli import main; main()"
    script = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 8>&1 9>/dev/null"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return {one.strip() for one in done.stdout.split("\n") if one.strip()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lora-retriever re", {"report", "retrieval"}),
        ("lora-retriever run --profile ll", {"llama2-7b", "llama2-13b"}),
        ("lora-retriever run --only mixture,fus", {"mixture,fusion", "mixture,fusion_ood"}),
        ("lora-retriever run --set retrieval.", {"retrieval.scorer=", "retrieval.k=", "retrieval.temperature="}),
        ("lora-retriever index --scorer disc", {"discriminant"}),
        ("lora-retriever train --dtype bf", {"bfloat16"}),
        ("lora-retriever run --log-", {"--log-file"}),
    ],
)
def test_the_shell_completes_commands_arguments_and_names(line: str, offered: set[str]) -> None:
    pytest.importorskip("argcomplete")
    assert completed(line) == offered
