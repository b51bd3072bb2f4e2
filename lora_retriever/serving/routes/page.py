"""`GET /`: the page on which a person sees adapters being found and composed. Three files, no other server."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter()
KINDS = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page.css", include_in_schema=False)
async def style() -> Response:
    """The page's style."""
    return _file("page.css")


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    """The page's script."""
    return _file("page.js")


def _file(name: str) -> Response:
    return Response(_read(name), media_type=f"{KINDS[name]}; charset=utf-8")


@cache
def _read(name: str) -> bytes:
    return (files("lora_retriever.serving") / "page" / name).read_bytes()
