"""Freed memory is kept, or given back to the operating system, where the C library allows the choice."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_retriever.generation.heap import KEPT, MAPPED, give_back_freed_memory, keep_freed_memory

ONLY_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these functions")


def resident() -> int:
    """The memory that this process takes, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


@ONLY_GLIBC
def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory()


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, int] = {}

    def mallopt(setting: int, value: int) -> int:
        told[setting] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory()
    assert told == {-1: KEPT, -3: MAPPED}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


@pytest.mark.slow
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()
    give_back_freed_memory()


@pytest.mark.slow
@ONLY_GLIBC
def test_memory_that_nothing_uses_is_given_back() -> None:
    size, count = 50_000, 2_000
    blocks = [bytearray(b"x" * size) for _ in range(count)]
    last = blocks[-1]  # glibc itself gives back the memory above the last used block
    del blocks
    before = resident()
    give_back_freed_memory()
    assert before - resident() > 0.9 * size * count
    assert len(last) == size
