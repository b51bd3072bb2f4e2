"""Adapters that clients add and remove while requests run, and the file that keeps the changes over a restart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from local_server import LocalServer
from places import TINY

from lora_retriever.errors import UserError
from lora_retriever.escaping import visible
from lora_retriever.serving.changes import FILE, read_changes

pytestmark = pytest.mark.slow
NEW = {"name": "mine", "domain": "new", "samples": [{"inputs": "sing a song of sixpence", "targets": "a pocket"}] * 2}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "sing a song of sixpence"}], "max_tokens": 2}


def pool_of(server: LocalServer) -> list[str]:
    return [adapter["id"] for adapter in server.client.get("/v1/adapters").json()["data"]]


def state_of(server: LocalServer) -> tuple[Any, ...]:
    service = server.serving.service
    return pool_of(server), service.adapters.adapters, sorted(service.folders)


def test_an_adapter_is_added_found_used_removed_and_added_again(changing_server: LocalServer, tmp_path: Path) -> None:
    server, root = changing_server, tmp_path / "adapters"
    shutil.copytree(TINY / "adapters" / "people_qa", root / "mine")
    before = state_of(server)
    for _ in range(2):
        added = server.client.post("/v1/adapters", json=NEW)
        assert added.status_code == 201 and added.json()["samples"] == 2 and added.json()["warnings"] == []
        assert server.client.post("/v1/adapters", json=NEW).status_code == 409
        found = server.post("/v1/retrieve", input="sing a song of sixpence", k=1).json()["data"][0]
        assert found["adapters"][0]["name"] == "mine"
        for model in ("mine", "selection", "arrow"):
            assert server.post("/v1/chat/completions", model=model, **CHAT).status_code == 200
        changes = read_changes(server.serving.service.profile)
        assert [entry.model_name for entry in changes.added] == ["mine"] and changes.folders["mine"] == root / "mine"
        assert server.client.delete("/v1/adapters/mine").json()["deleted"]
        assert server.post("/v1/chat/completions", model="mine", **CHAT).status_code == 404
        server.serving.service.engine.call(lambda: None).result()
        assert state_of(server) == before
    assert server.client.delete("/v1/adapters/people_qa").status_code == 200
    assert server.client.delete("/v1/adapters/people_qa").status_code == 404
    changes = read_changes(server.serving.service.profile)
    assert "people_qa" not in [
        entry.model_name for entry in changes.applied(list(server.serving.service.pool.current.entries.values()))
    ]
    server.serving.service.pool.wait()
    assert len(server.serving.service.pool.index(server.serving.service.pool.current, "cosine").names) == 18


def test_an_adapter_of_another_base_is_added_with_a_warning(changing_server: LocalServer, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY / "adapters" / "people_qa", tmp_path / "adapters" / "mine"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "someone/else"}))
    added = changing_server.client.post("/v1/adapters", json=NEW)
    (warning,) = added.json()["warnings"]
    assert added.status_code == 201 and "someone/else" in warning


def test_what_cannot_be_added_changes_nothing(changing_server: LocalServer, tmp_path: Path) -> None:
    server, root = changing_server, tmp_path / "adapters"
    good = TINY / "adapters" / "people_qa"
    shutil.copytree(good, root / "broken")
    (root / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    shutil.copytree(good, tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    shutil.copytree(good, root / "mine")
    before = state_of(server)
    refused = [
        {"folder": "../outside"}, {"folder": str(tmp_path / "outside")}, {"folder": "link"}, {"folder": "absent"},
        {"folder": "."}, {"folder": "broken"}, {"name": "mixture"}, {"name": "a:b"}, {"name": "a\nb"},
        {"name": "../mine"},
        {"samples": []}, {"samples": [{"inputs": ""}]}, {"name": "People_QA"}, {"more": 1},
    ]  # fmt: skip
    for changed in refused:
        response = server.client.post("/v1/adapters", json={**NEW, "folder": "mine", **changed})
        assert response.status_code in (400, 409), (changed, response.text)
        assert state_of(server) == before, changed
    (root / FILE).mkdir()  # the change cannot be written down
    assert server.client.post("/v1/adapters", json=NEW).status_code == 500
    server.serving.service.engine.call(lambda: None).result()
    assert state_of(server) == before


def test_whatever_shows_an_adapters_name_escapes_it(changing_server: LocalServer, tmp_path: Path) -> None:
    server, name = changing_server, "esc\x1b[31m \u202ertl \u2028\x9b2J <b>&"
    shutil.copytree(TINY / "adapters" / "people_qa", tmp_path / "adapters" / "mine")
    assert server.client.post("/v1/adapters", json={**NEW, "name": name, "folder": "mine"}).status_code == 201
    answer = server.post("/v1/chat/completions", model=name, **CHAT)
    assert [adapter["name"] for adapter in answer.json()["lora"]["adapters"]] == [name]  # JSON does not change the name
    wrong = server.post("/v1/chat/completions", model="mixture", lora={"exclude": [name + "?"]}, **CHAT)
    unknown = server.post("/v1/chat/completions", model="mixture", **{"\x1b[31m": 1}, **CHAT)
    shown = [answer, wrong, unknown, *(server.client.get(f"/v1/{what}") for what in ("models", "adapters"))]
    assert all(response.text.isascii() and response.text.isprintable() for response in shown)
    for refused in (wrong, unknown):
        error = refused.json()["error"]
        assert refused.status_code == 400 and all(visible(error[part]) == error[part] for part in ("message", "param"))
    assert all(line.isascii() and line.isprintable() for line in server.log)
    metrics = server.client.get("/metrics").text
    assert "rtl" in metrics and visible(metrics, line_ends=True) == metrics
    assert server.client.delete(f"/v1/adapters/{quote(name, safe='')}").status_code == 200
    assert "rtl" not in server.client.get("/metrics").text


def test_a_fixed_pool_is_not_changed(server: LocalServer) -> None:
    assert server.client.post("/v1/adapters", json=NEW).status_code == 403
    assert server.client.delete("/v1/adapters/people_qa").status_code == 403


def test_a_damaged_file_of_changes_is_named(changing_server: LocalServer, tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"added": [{"entry": {}}], "removed": []})):
        (tmp_path / "adapters" / FILE).write_text(text)
        with pytest.raises(UserError, match=FILE):
            read_changes(changing_server.serving.service.profile)
