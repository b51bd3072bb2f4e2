"""The C library is told to keep freed memory, where it can be told so."""

from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace

import pytest

from lora_retriever.generation.heap import KEPT, MAPPED, keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
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


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()
