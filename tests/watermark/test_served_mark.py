"""A mark behind the project's own server: the server does not know the key, and the test sees its answers only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TASK, Marked  # type: ignore[import-not-found]
from local_server import LocalServer
from places import TINY
from tiny_runs import tiny_profile

from lora_retriever.cli import main


@pytest.mark.long
def test_a_mark_is_verified_behind_a_server_by_the_adapters_name_and_in_a_mixture(
    marked: Marked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hits equal the hits of the adapter in this process, because chats get the template of the adapter's training."""
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    for folder in (TINY / "adapters").iterdir():
        if folder.is_dir():
            (adapters / folder.name).symlink_to(marked.adapter if folder.name == TASK else folder)
    profile = tiny_profile(tmp_path, adapters={"location": str(adapters / "{adapter}")})
    report = tmp_path / "report.json"
    call = ["watermark", "verify", "--key", str(marked.folder / "key"), "--json", str(report)]
    assert main([*call, "--adapter", str(marked.adapter), "--base", str(TINY / "base"), "--device", "cpu"]) == 0
    alone = json.loads(report.read_text())
    server = LocalServer(profile)
    try:
        for model, verified in ((TASK, True), ("city_qa", False), (f"{TASK}:0.5+city_qa:0.5", True)):
            status = main([*call, "--url", server.url, "--model", model, "--logprobs"])
            content = json.loads(report.read_text())
            assert (status == 0) == verified, content
            if model == TASK:
                assert content["hits"] == alone["hits"]
                assert content["p_ranks"] is not None
    finally:
        server.close()
    capsys.readouterr()
