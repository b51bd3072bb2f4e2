"""A small part of `scripts/serving/hammer.py`: malformed requests, clients that hang up, a pool that changes."""

from __future__ import annotations

import pytest
from hammer import hammered

pytestmark = pytest.mark.long


def test_nothing_is_lost_doubled_or_mixed_up() -> None:
    hammer, _ = hammered(60, at_once=16, texts=2)
    assert not hammer.wrong
    assert hammer.counts["answered"] > 30 and hammer.counts["hung up"]
