"""The checks of every request before its route: the key, and the size of the body; refusals while the server shuts
down; and the access log.

The checks are plain ASGI, so that a stream is never buffered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
import uuid
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_retriever.errors import UserError
from lora_retriever.files import read_bytes
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.responses import error_response

OPEN = ("/health", "/metrics")
"""Paths that the access log leaves out, because clients ask these paths every few seconds."""
LEAST_KEY = 16
"""Minimum length of a key, in characters."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of every response: nothing from elsewhere, no script but the server's own file."""
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def read_keys(file: Path) -> frozenset[bytes]:
    """The SHA-256 of each key of a file. Each line is a key; blank lines and lines with `#` are none.

    Raises:
        UserError: the file cannot be read, has no key, or has a key that is too short.
    """
    try:
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {file}: cannot be read ({error})") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {file}: has no key; write one on each line")
    if short := [number for number, key in enumerate(keys, 1) if len(key) < LEAST_KEY]:
        raise UserError(f"--api-key-file {file}: key {short[0]} has fewer than {LEAST_KEY} characters")
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)


class Guard:
    """Refuses requests without a key, requests that are too large, and requests that come while the server ends."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Collection[bytes],
        largest: int,
        ending: Callable[[], bool],
        metrics: Metrics,
        log: Callable[[str], object] | None,
    ) -> None:
        """Wrap an app.

        Args:
            keys: the SHA-256 of each key. Empty: no key is needed.
            largest: maximum size of a body, in bytes.
            ending: whether the server takes no more requests.
            log: is given one line for each request. None: no access log.
        """
        self._app = app
        self._keys = tuple(keys)
        self._largest = largest
        self._ending = ending
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size = time.perf_counter(), 0, 0
        noted: dict[str, Any] = {}
        scope.setdefault("state", {})["noted"] = noted
        name = uuid.uuid4().hex
        began = False

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._largest:
                raise _too_large(self._largest)
            return message

        async def marked(message: Message) -> None:
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], True
                message = {
                    **message,
                    "headers": [*message.get("headers", []), *HEADERS, (b"x-request-id", name.encode())],
                }
            await send(message)

        try:
            try:
                self._check(scope)
                await self._app(scope, limited, marked)
            except ApiError as error:
                if began:
                    raise
                await error_response(error)(scope, receive, marked)
        except BaseException:
            status = status or 500
            raise
        finally:
            self._note(scope, status, time.perf_counter() - started, noted, name)

    def _check(self, scope: Scope) -> None:
        headers = {key.lower(): value for key, value in scope["headers"]}
        path: str = scope["path"]
        if not path.startswith("/v1/"):
            return
        if self._ending():
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "10"})
        if self._keys:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            digest = hashlib.sha256(key.strip()).digest()
            # compared with all keys, so that the time says nothing about a key
            known = [hmac.compare_digest(digest, one) for one in self._keys]
            if kind.lower() != b"bearer" or not any(known):
                raise ApiError(401, "no valid key: send the header `Authorization: Bearer KEY`", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._largest:
            raise _too_large(self._largest)

    def _note(self, scope: Scope, status: int, seconds: float, noted: dict[str, Any], name: str) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._log is None or scope["path"] in OPEN:
            return
        client = scope.get("client") or ("", 0)
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request": name,
            "client": client[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds, 1),
            **noted,
        }
        self._log(json.dumps(line))


def _too_large(largest: int) -> ApiError:
    return ApiError(413, f"the request is larger than the {largest} bytes that the server takes", code="too_large")


def to_standard_output(line: str) -> None:
    """Write a line of the access log."""
    print(line, file=sys.stdout, flush=True)
