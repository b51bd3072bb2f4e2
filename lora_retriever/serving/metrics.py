"""The counters of the server, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from fastapi import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from lora_retriever.escaping import visible

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The server's counters. Each server has a registry of its own."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        p, r = "lora_retriever", self._registry
        ProcessCollector(registry=r)  # the CPU time and the memory of this process, on Linux
        self.requests = Counter(f"{p}_requests", "Requests by route and status", ["route", "status"], registry=r)
        self.seconds = Histogram(f"{p}_request_seconds", "Time of a request", ["route"], buckets=SECONDS, registry=r)
        self.models = Counter(f"{p}_answers", "Answers by what `model` named", ["kind", "model"], registry=r)
        self.adapters = Counter(f"{p}_adapter_uses", "Answers that used an adapter", ["adapter"], registry=r)
        self.read = Counter(f"{p}_prompt_tokens", "Tokens of prompts", registry=r)
        self.made = Counter(f"{p}_answer_tokens", "Tokens of answers", registry=r)
        self.finding = Histogram(f"{p}_routing_seconds", "Time of finding adapters", buckets=SECONDS, registry=r)
        self.first = Histogram(
            f"{p}_first_token_seconds", "Time from the queue to the first token", buckets=SECONDS, registry=r
        )
        self.steps = Histogram(f"{p}_step_seconds", "Time of one step of the engine", buckets=SECONDS, registry=r)
        self.rows = Histogram(f"{p}_step_rows", "Rows of one step of the engine", buckets=ROWS, registry=r)
        self.running = Gauge(f"{p}_running", "Rows that are decoded now", registry=r)
        self.waiting = Gauge(f"{p}_waiting", "Answers that wait for a row", registry=r)
        self.pool = Gauge(f"{p}_pool_adapters", "Adapters of the pool", registry=r)

    def step(self, rows: int, waiting: int, seconds: float) -> None:
        """Count one step of the engine."""
        self.rows.observe(rows)
        self.steps.observe(seconds)
        self.running.set(rows)
        self.waiting.set(waiting)

    def used(self, weights: Mapping[str, float]) -> None:
        """Count the adapters of one answer."""
        for name in weights:
            self.adapters.labels(visible(name)).inc()

    def forget(self, adapter: str) -> None:
        """Drop the counter of an adapter that has left the pool."""
        with suppress(KeyError):
            self.adapters.remove(visible(adapter))

    def response(self) -> Response:
        """The numbers in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
