"""The script that counts the operations of gates counts operations, and no views."""

from __future__ import annotations

import sys

import count_operations
import pytest
import torch


def test_views_are_not_counted() -> None:
    x = torch.ones(4, 6)
    with count_operations.Counter() as counter:
        y = x.view(2, 12).transpose(0, 1)[:, None]
        (y + 1).mul_(2)
        torch.zeros_like(x).unbind(0)
    assert counter.count == 3


@pytest.mark.slow
def test_a_gate_needs_few_operations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["count_operations.py", "--only", "arrow"])
    count_operations.main()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("arrow"))
    assert 8 < float(line.split()[1]) < 14
