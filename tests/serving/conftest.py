"""Servers of the miniature in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import LocalServer
from tiny_runs import tiny_profile

from lora_retriever.experiment.profile import Profile


@pytest.fixture(scope="session")
def server(tiny: Profile) -> Iterator[LocalServer]:
    """A server of the miniature. Tests do not change this server."""
    running = LocalServer(tiny)
    yield running
    running.close()


@pytest.fixture
def changing_server(tmp_path: Path) -> Iterator[LocalServer]:
    """A server whose clients may add adapters from the folder `adapters` of the test's own folder."""
    (tmp_path / "adapters").mkdir()
    running = LocalServer(tiny_profile(tmp_path, serve={"adapters": "./adapters"}), allows_changes=True)
    yield running
    running.close()
