"""The checks of a request before its route: keys, the size of bodies, the end of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lora_retriever.errors import UserError
from lora_retriever.serving.guard import Guard, read_keys
from lora_retriever.serving.metrics import Metrics

KEY = "a-key-of-twenty-letters"


def test_a_comment_behind_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# the keys of our server\n{KEY}\n", "utf-8-sig")
    (tmp_path / "plain").write_text(f"{KEY}\n")
    assert read_keys(tmp_path / "keys") == read_keys(tmp_path / "plain")


async def reading_app(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await PlainTextResponse("passed")(scope, receive, send)


def asked(guard: Guard, path: str = "/v1/models", body: bytes = b"", **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as client:
            return await client.post(path, content=body, headers=headers)

    return asyncio.run(ask())


@pytest.fixture
def keys(tmp_path: Path) -> frozenset[bytes]:
    (tmp_path / "keys").write_text(f"# mine\n{KEY}\n\nanother-key-of-many-letters\n")
    return read_keys(tmp_path / "keys")


def test_a_key_is_needed_for_the_interface_and_not_for_health(keys: frozenset[bytes]) -> None:
    guard = Guard(reading_app, keys, 100, lambda: False, Metrics(), None)
    assert asked(guard, "/health").status_code == 200
    for headers in ({}, {"authorization": KEY}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
        refused = asked(guard, **headers)
        assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    passed = asked(guard, authorization=f"Bearer {KEY}")
    assert passed.status_code == 200 and "default-src 'none'" in passed.headers["content-security-policy"]


def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_its_size() -> None:
    guard = Guard(reading_app, (), 100, lambda: False, Metrics(), None)
    assert asked(guard, body=b"x" * 100).status_code == 200
    assert asked(guard, body=b"x" * 101).status_code == 413
    assert asked(guard, body=b"x" * 101, **{"content-length": "5"}).status_code == 413


def test_a_server_that_ends_refuses_new_requests() -> None:
    refused = asked(Guard(reading_app, (), 100, lambda: True, Metrics(), None))
    assert refused.status_code == 503 and refused.headers["retry-after"]


@pytest.mark.parametrize("content", ["", "# none\n", "short\n"])
def test_a_file_of_keys_must_have_keys(content: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(UserError, match="--api-key-file"):
        read_keys(tmp_path / "keys")
