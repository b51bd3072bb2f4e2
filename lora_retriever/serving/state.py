"""`Serving`: the objects that the routes of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import Request

from lora_retriever.serving.changes import Changing
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.prompts import Prompts
from lora_retriever.serving.service import Service


@dataclass
class Serving:
    """The objects that the routes use.

    Attributes:
        changing: adds and removes adapters. None: clients may not.
        ending: whether the server takes no more requests.
    """

    service: Service
    prompts: Prompts
    metrics: Metrics
    changing: Changing | None = None
    ending: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


def serving_of(request: Request) -> Serving:
    """The objects that a route uses."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving
