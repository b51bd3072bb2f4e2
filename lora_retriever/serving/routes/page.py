"""`GET /`: the page on which a person sees adapters being found and composed. No other server is asked."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter()
PAGE, REPORT = "lora_retriever.serving", "lora_retriever.report"


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return _file("page/index.html", "text/html")


@router.get("/page.css", include_in_schema=False)
async def style() -> Response:
    """The page's style."""
    return _file("page/page.css", "text/css")


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    """The page's script."""
    return _file("page/page.js", "text/javascript")


@router.get("/dom.js", include_in_schema=False)
async def shared_script() -> Response:
    """The script that page and report share: texts become text nodes, and hidden characters become visible."""
    return _file("dom.js", "text/javascript", REPORT)


def _file(name: str, kind: str, package: str = PAGE) -> Response:
    return Response(_read(package, name), media_type=f"{kind}; charset=utf-8")


@cache
def _read(package: str, name: str) -> bytes:
    return (files(package) / name).read_bytes()
