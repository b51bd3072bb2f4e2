"""The HTTP interface of a service, as an ASGI app: OpenAI's routes, and the server's own."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lora_retriever import __version__
from lora_retriever.escaping import brief
from lora_retriever.log import LOG
from lora_retriever.serving import routes
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.guard import Guard
from lora_retriever.serving.responses import Json, error_response
from lora_retriever.serving.state import Serving


def make_app(serving: Serving, keys: Collection[bytes] = (), log: Callable[[str], object] | None = None) -> ASGIApp:
    """The app of a service.

    Args:
        keys: the SHA-256 of each key that a client may send. Empty: no key is needed.
        log: is given one line for each request. None: no access log.
    """
    app = FastAPI(title="lora-retriever", version=__version__, docs_url=None, redoc_url=None)
    app.state.serving = serving
    for file in sorted(module.name for module in pkgutil.iter_modules(routes.__path__)):
        app.include_router(import_module(f"{routes.__name__}.{file}").router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)
    largest = int(serving.service.profile.serve.body)
    return Guard(app, keys, largest, lambda: serving.ending, serving.metrics, log)


async def _api_error(request: Request, error: Exception) -> Json:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _invalid(request: Request, error: Exception) -> Json:
    """The first problem of a body, with the field's name."""
    assert isinstance(error, RequestValidationError)
    problem = _nearest(error)
    place = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    if problem["type"] == "json_invalid":
        return error_response(ApiError(400, "the body is no JSON", code="invalid_json"))
    unknown = place[-1:] if problem["type"] == "extra_forbidden" else []  # a client may give a field any name
    known = place[: len(place) - len(unknown)]
    param = brief(".".join([*(part for part in known if not _is_kind(part)), *unknown])) or None
    reasons = {"missing": "is missing", "extra_forbidden": "is no field that this server knows; leave it out"}
    reason = reasons.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")
    message = reason if param is None else f"`{param}`: {reason}"
    return error_response(ApiError(400, message, param))


def _nearest(error: RequestValidationError) -> dict[str, Any]:
    """The problem that the message names. A field that may have several types has a problem for each type: the deepest
    problem is named."""
    problems = list(error.errors())
    first = problems[0]
    alike = [p for p in problems if p["loc"][:2] == first["loc"][:2]]
    return max(alike, key=lambda problem: len(problem["loc"]))


def _is_kind(part: str) -> bool:
    """Whether a part of a problem's place names a type of a field's value, such as `list[int]` or `str`, and not a
    field."""
    return "[" in part or part in ("str", "int", "float", "bool", "constrained-str")


async def _http_error(request: Request, error: Exception) -> Json:
    assert isinstance(error, HTTPException)
    reasons = {404: "there is no such path", 405: f"this path does not take {request.method}"}
    message = reasons.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _unforeseen(request: Request, error: Exception) -> Json:
    LOG.error("a request failed", exc_info=error)
    return error_response(ApiError(500, f"the server failed ({type(error).__name__}); its log has the reason"))
