"""`GET /health` and `GET /metrics`: whether the server takes requests, and its numbers for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lora_retriever.serving.responses import Json
from lora_retriever.serving.state import serving_of

router = APIRouter()


@router.get("/health", response_class=Json)
async def health(request: Request) -> Json:
    """200 if the server takes requests, 503 while it shuts down and after its device has failed."""
    serving = serving_of(request)
    broken = serving.service.engine.broken
    status = "broken" if broken is not None else "ending" if serving.ending else "ready"
    state = {"status": status, "adapters": len(serving.service.pool.current.entries)}
    return Json(state | ({} if broken is None else {"reason": broken}), status_code=200 if status == "ready" else 503)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """The server's numbers, in Prometheus' text format."""
    serving = serving_of(request)
    serving.metrics.pool.set(len(serving.service.pool.current.entries))
    return serving.metrics.response()
