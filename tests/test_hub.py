"""A failure of the Hub gives one line, whatever the cause."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import errors
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from lora_retriever.errors import UserError
from lora_retriever.hub import ask_hub, fetch, folder_or_id, is_cached

ERRORS = [
    OSError(28, "No space left on device"),
    LocalEntryNotFoundError("first line\nsecond line"),
    OfflineModeIsEnabled("offline"),
    ValueError("embedded null byte"),
    RuntimeError(""),
    TimeoutError("timed out"),
    OSError("x" * 5000),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_failure_is_one_short_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(UserError) as raised:
        fetch("org/model", None)
    message = str(raised.value)
    assert message.startswith("org/model: there is no such folder, and the Hub does not give it either (")
    assert "second line" not in message
    assert (str(error).split("\n")[0] or "RuntimeError")[:100] in message
    assert len(message) < 700
    assert not is_cached("org/model", None)


@pytest.mark.parametrize("name", ["a\0b", "\ud83d/a", "x/y/z", "", "a" * 5000, "..", "models--a"])
def test_a_name_that_is_none_is_one_short_line(name: str) -> None:
    with pytest.raises(UserError) as raised:
        fetch(name, None)
    assert len(str(raised.value)) < 1000
    assert len(str(raised.value).splitlines()) == 1
    assert not is_cached(name, None)


def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    for name in ("./nowhere", "/nowhere", "~nosuchuser/x", "../" + "x" * 5000):
        with pytest.raises(UserError, match=r": there is no such folder$"):
            folder_or_id(name)


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert folder_or_id(str(tmp_path / "model")) == folder_or_id("~/model") == tmp_path / "model"


def refusal(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """An error of the Hub's library, without a response of the Hub."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "token", "gives", "reason"),
    [
        (None, None, True, ""),
        (refusal(errors.RemoteEntryNotFoundError), None, True, ""),
        (refusal(errors.GatedRepoError), None, False, "not logged in.*licence"),
        (refusal(errors.GatedRepoError), "secret", False, "account has no access.*licence"),
        (refusal(errors.RepositoryNotFoundError), None, False, "no such repository"),
        (refusal(errors.RevisionNotFoundError), None, False, "no revision v1"),
        (OfflineModeIsEnabled("offline"), None, None, "cannot be asked \\(offline\\)"),
        (OSError("no network\nsecond line"), None, None, "cannot be asked \\(no network\\)"),
    ],
)
def test_what_the_hub_says_of_a_repository_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, token: str | None, gives: bool | None, reason: str
) -> None:
    def answer(*_: object, **__: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    found = ask_hub("org/model", "v1")
    assert found.gives is gives
    assert re.search(reason, found.reason) and bool(found.reason) == bool(reason)


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Event()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: end.wait())
    found = ask_hub("org/model", None, limit=0.01)
    end.set()
    assert (found.gives, found.reason) == (None, "the Hub did not answer within 0.01 seconds")
