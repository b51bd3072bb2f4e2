"""The benchmark of the output layer, in small: all three products are timed in both forms."""

from __future__ import annotations

import bench_head
import pytest
from places import TINY


@pytest.mark.slow
def test_all_three_products_are_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "sys.argv", ["bench_head.py", "--base", str(TINY / "base"), "--rows", "4", "--tokens", "6", "--rounds", "1"]
    )
    bench_head.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("prefill ", "prefill and backward", "next token"))


def test_forms_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    clock = iter([0, 100, 100, 200, 200, 203, 203, 204, 204, 209, 209, 212])
    monkeypatch.setattr(bench_head.time, "perf_counter", lambda: next(clock))
    assert bench_head.in_turn(asked.append, rounds=2) == (4, 2)
    assert asked == [True, False] * 3
