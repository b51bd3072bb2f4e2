"""A small cluster of Ray for tests, like a cluster that a user may have running already."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def small_cluster() -> Iterator[None]:
    """Ray with two CPUs and little shared memory, as in a container."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=100 << 20,
    )
    try:
        yield
    finally:
        ray.shutdown()
