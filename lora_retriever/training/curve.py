"""The course of an adapter's training: shown step by step, and kept beside the adapter as a table and a plot."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_retriever.files import write_text

TABLE = "losses.csv"
PLOT = "losses.png"
COLUMNS = ("step", "epoch", "loss", "validation_loss", "learning_rate", "tokens")


@dataclass(frozen=True)
class Step:
    """One finished step of a training.

    Attributes:
        number: the step's number, from 1.
        steps: number of steps of the whole training.
        loss: the mean loss of the step's examples, nats per token of the answers.
        tokens_per_second: tokens read since the training began, padding not counted, divided by the time.
    """

    number: int
    steps: int
    loss: float
    tokens_per_second: float


class StepCallback(TrainerCallback):
    """Calls a function after every step. The Trainer must log every step and count tokens."""

    def __init__(self, on_step: Callable[[Step], None]) -> None:
        self._on_step = on_step
        self._started = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Call the function. The Trainer also logs evaluations and the end of the training, which are no steps."""
        if logs and "loss" in logs:
            speed = state.num_input_tokens_seen / max(time.perf_counter() - self._started, 1e-9)
            self._on_step(Step(state.global_step, state.max_steps, logs["loss"], speed))


def epoch_losses(history: Sequence[Mapping[str, float]]) -> list[float]:
    """The mean loss of each epoch's steps, from the Trainer's log of all steps. The last epoch may be incomplete."""
    epochs: dict[int, list[float]] = {}
    for entry in history:
        if "loss" in entry:
            epochs.setdefault(math.ceil(entry["epoch"] - 1e-6), []).append(entry["loss"])
    return [sum(losses) / len(losses) for losses in epochs.values()]


def write_curve(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write `losses.csv` into an adapter's folder: one line a step. Write `losses.png` where matplotlib is installed.

    Args:
        history: the Trainer's log of all steps and evaluations.
    """
    validation = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    steps = [entry for entry in history if "loss" in entry]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in steps:
        held_out = validation.get(entry["step"])
        writer.writerow(
            [
                entry["step"],
                f"{entry['epoch']:.4g}",
                f"{entry['loss']:.6g}",
                "" if held_out is None else f"{held_out:.6g}",
                f"{entry['learning_rate']:.6g}",
                entry.get("num_input_tokens_seen", 0),
            ]
        )
    write_text(folder / TABLE, text.getvalue())
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    axes.plot([entry["step"] for entry in steps], [entry["loss"] for entry in steps], label="training", linewidth=1)
    if validation:
        axes.plot(list(validation), list(validation.values()), "o-", label="validation")
        axes.legend(loc="best")
    axes.set_ylim(bottom=0)
    figure.savefig(folder / PLOT, dpi=120, metadata={"Software": None})
