"""What the Hub does not give is one line, whatever went wrong below."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from lora_retriever.errors import UserError
from lora_retriever.hub import fetch, folder_or_id, is_cached

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
