"""`/v1/adapters`: the pool. With `--allow-changes`, clients add adapters to the pool and remove adapters."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from lora_retriever.data.rows import PoolEntry
from lora_retriever.serving.bodies import BodyRoute
from lora_retriever.serving.changes import Changing
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.responses import Json
from lora_retriever.serving.schemas import NewAdapter
from lora_retriever.serving.state import Serving, serving_of

router = APIRouter(route_class=BodyRoute)


@router.get("/v1/adapters", response_class=Json)
async def adapters(request: Request) -> Json:
    """The pool's adapters, each with its domain, its number of samples, and one sample's input as an example."""
    entries = serving_of(request).service.pool.current.entries.values()
    return Json({"object": "list", "data": [_described(entry) for entry in entries]})


@router.post("/v1/adapters", response_class=Json, status_code=201)
async def add(body: NewAdapter, request: Request) -> Json:
    """Verify, load and find one more adapter. Requests that run are not disturbed.

    The field `warnings` of the response says what the client should know, such as that the adapter names another base.
    """
    entry, notes = await asyncio.to_thread(_changing(serving_of(request)).add, body)
    request.state.noted["adapter"] = entry.model_name
    return Json({**_described(entry), "warnings": list(notes)}, status_code=201)


@router.delete("/v1/adapters/{name:path}", response_class=Json)
async def remove(name: str, request: Request) -> Json:
    """Remove an adapter from the pool. Running requests keep the adapter to their end."""
    serving = serving_of(request)
    await asyncio.to_thread(_changing(serving).remove, name)
    serving.metrics.forget(name)
    request.state.noted["adapter"] = name
    return Json({"id": name, "object": "adapter", "deleted": True})


def _changing(serving: Serving) -> Changing:
    if serving.changing is None:
        raise ApiError(403, "this server's pool is fixed; start it with --allow-changes", code="changes_not_allowed")
    return serving.changing


def _described(entry: PoolEntry) -> dict[str, object]:
    return {
        "id": entry.model_name,
        "object": "adapter",
        "domain": entry.domain,
        "samples": len(entry.sample),
        "example": entry.sample[0].inputs,
    }
