"""`GET /v1/models`: the models that a request can name: the methods, and the pool's adapters."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from lora_retriever.escaping import quoted
from lora_retriever.methods import Method
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.naming import learns
from lora_retriever.serving.responses import Json
from lora_retriever.serving.service import Service
from lora_retriever.serving.state import Serving, serving_of

router = APIRouter()


@router.get("/v1/models", response_class=Json)
async def models(request: Request) -> Json:
    """All models. A model is a method or an adapter."""
    return Json({"object": "list", "data": _models(serving_of(request))})


@router.get("/v1/models/{model:path}", response_class=Json)
async def model(model: str, request: Request) -> Json:
    """One model."""
    for found in _models(serving_of(request)):
        if found["id"] == model:
            return Json(found)
    raise ApiError(404, f"the model {quoted(model)} does not exist", "model", "model_not_found")


def _models(serving: Serving) -> list[dict[str, Any]]:
    service = serving.service
    methods = [
        _model(serving, name, {"kind": "method", **_described(method, service)})
        for name, method in service.offered.items()
    ]
    return methods + [
        _model(serving, name, {"kind": "adapter", "domain": entry.domain})
        for name, entry in service.pool.current.entries.items()
        if name not in service.methods
    ]


def _described(method: Method, service: Service) -> dict[str, Any]:
    """The description of a method for a client.

    `takes` says which wishes change the method's answers, and `ready` says whether a method that learns has learned.
    """
    k, learned = service.profile.retrieval.k, learns(method)
    takes = {setting: not learned and method.depends_on(setting, k) for setting in ("k", "scorer", "temperature")}
    return {"summary": method.summary, "citation": method.citation, "takes": takes, "ready": service.is_ready(method)}


def _model(serving: Serving, name: str, lora: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": serving.created, "owned_by": "lora-retriever", "lora": lora}
