"""Remembered arrays are found again only if everything that decides an array is the same.

A broken cache stops nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_retriever import remembered as module
from lora_retriever.remembered import Array, cache_folder, code_of, remembered


class Counting:
    """A computation that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[Array]:
        self.calls += 1
        return [np.array([1.0, np.nan, 3.0]), np.array([[float(self.calls)]])]


def files() -> list[Path]:
    return sorted(cache_folder().rglob("*.npz"))


def test_an_array_is_computed_once_for_equal_parts() -> None:
    compute = Counting()
    first, second = (remembered(["a", b"b"], compute) for _ in range(2))
    assert compute.calls == 1
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)
    for others in (["ab"], ["a", b"c"], ["a", b"b", ""], [b"b", "a"]):
        remembered(others, compute)
    assert compute.calls == 5


def test_a_damaged_file_is_computed_again_and_replaced() -> None:
    compute = Counting()
    remembered(["a"], compute)
    (file,) = files()
    file.write_bytes(file.read_bytes()[:40])
    remembered(["a"], compute)
    remembered(["a"], compute)
    assert compute.calls == 2


def test_a_cache_that_cannot_be_used_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_RETRIEVER_CACHE", str(tmp_path / "file"))
    compute = Counting()
    assert len(remembered(["a"], compute)) == len(remembered(["a"], compute)) == 2
    assert compute.calls == 2


def test_the_files_not_used_for_longest_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 4)
    for number in range(5):
        remembered([str(number)], Counting())
    assert len(files()) == 3


def test_the_code_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.py").write_text("A = 1\n")
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    module._code_of.cache_clear()
    before = code_of("part")
    (tmp_path / "part" / "one.py").write_text("A = 2\n")
    module._code_of.cache_clear()
    assert code_of("part") != before
    assert code_of("part", packages=["numpy"]) != code_of("part")
    module._code_of.cache_clear()
