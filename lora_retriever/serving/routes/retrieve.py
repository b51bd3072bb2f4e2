"""`POST /v1/retrieve`: the adapters for texts, without answers.

`GET /v1/scorers`: the scorers that can order the adapters.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from lora_retriever.escaping import quoted
from lora_retriever.retrieval.scorers import SCORERS
from lora_retriever.serving.answers import hits_of
from lora_retriever.serving.bodies import BodyRoute
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.naming import check_scorer
from lora_retriever.serving.responses import Json
from lora_retriever.serving.schemas import RetrieveRequest
from lora_retriever.serving.state import serving_of

router = APIRouter(route_class=BodyRoute)


@router.get("/v1/scorers", response_class=Json)
async def scorers(request: Request) -> Json:
    """The scorers that a request can name, the profile's scorer, and the profile's k."""
    profile = serving_of(request).service.profile
    known = [name for name, rule in SCORERS.items() if profile.encoder is not None or not rule.needs_embeddings]
    default = profile.retrieval.scorer
    names = known if default in known else [*known, default]
    return Json({"object": "list", "data": names, "default": default, "k": profile.retrieval.k})


@router.post("/v1/retrieve", response_class=Json)
async def retrieve(body: RetrieveRequest, request: Request) -> Json:
    """The best k adapters of each text, with scores, and with probabilities if the pool allows a calibration.

    `presence` is the probability that the pool has the text's own adapter at all.
    """
    service = serving_of(request).service
    profile, snapshot = service.profile, service.pool.current
    scorer = body.scorer or profile.retrieval.scorer
    check_scorer(scorer, profile, "scorer")
    for name in body.exclude:
        if name not in snapshot.entries:
            raise ApiError(400, f"`exclude`: no adapter {quoted(name)}", "exclude", "adapter_not_found")
    exclude = frozenset(body.exclude)
    k = body.k or max(1, min(profile.retrieval.k, len(snapshot.entries) - len(exclude)))
    hits, presence = await asyncio.to_thread(service.routing.search, body.texts, k, scorer, exclude, snapshot)
    domains = snapshot.domains
    data = []
    for index, names in enumerate(hits.names):
        chances = [] if hits.probabilities is None else hits.probabilities[index].tolist()
        data.append(
            {
                "index": index,
                "adapters": hits_of(names, hits.scores[index].tolist(), chances, domains),
                "presence": None if presence is None else float(presence[index]),
            }
        )
    request.state.noted.update(texts=len(body.texts), scorer=scorer)
    return Json({"object": "list", "scorer": scorer, "data": data})
