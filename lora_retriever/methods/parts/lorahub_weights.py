"""LoraHub: weights of adapters learned without gradients on a few examples (Huang et al. 2023, arXiv 2307.13269).

The composition is their fusion, y = W x + (Σ w_p s_p B_p)(Σ w_p A_p) x, with w_p between -1.5 and 1.5. Its weights are
to make L(w) + α Σ |w_p| / P small, L the cross-entropy of the examples' answers and α = 0.05. The authors give this to
nevergrad's NGOpt, with 40 steps from w = 0; for their numbers, and for up to some 30 steps an adapter, NGOpt chooses
COBYLA, which is named here: beyond, its choices are others, and fail with today's numpy. COBYLA draws nothing: the seed
decides which adapters are taken.

Their code divides the mean loss over the tokens of a batch by the number of all examples, so that the batch's size
weighs L against the penalty. Here L is the mean over examples of their answers' mean loss: what their code computes in
batches of one.

The optimisation (`learn_weights`) knows nothing of models, and the loss (`answer_loss`) nothing of how weights are
found. `learn_checkpoint` is the command.
"""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nevergrad
import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import write_json, write_text
from lora_retriever.generation.batches import ran_out_of_memory
from lora_retriever.generation.examples import IGNORED, LeftPadding, encode_example, example_losses
from lora_retriever.generation.generator import Generator, vocabulary_of
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.special_tokens import pad_token_id
from lora_retriever.progress import progress_bar
from lora_retriever.tables import Table
from peft_composition import ComposableModel, CompositionError

ADAPTERS = 20
STEPS = 40
L1 = 0.05
BOUND = 1.5
RECORD_FILE = "lorahub.json"
LOGITS = 2**27
"""So many logits a batch has at most: half a GiB in float32, of which a few copies are made."""
WORST = 100.0
"""What a loss counts that is NaN or infinite, nats: far above any other, yet a number that a line can be drawn to."""

Loss = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Step:
    """One try of the optimisation: the weights asked about and their loss (nats, without the penalty)."""

    weights: tuple[float, ...]
    loss: float
    seconds: float


@dataclass(frozen=True)
class Learned:
    """What was learned, and how.

    Attributes:
        weights: of every adapter; all 0 where nothing better than the base was found.
        loss: with these weights, nats, without the penalty.
        base_loss: without any adapter; never lower.
        steps: all tries in their order, the first at weights of 0.
    """

    weights: dict[str, float]
    loss: float
    base_loss: float
    steps: tuple[Step, ...]

    def record(self) -> dict[str, Any]:
        """All of it but the single tries' weights, as a record keeps it."""
        return {
            "weights": self.weights,
            "loss": self.loss,
            "base_loss": self.base_loss,
            "losses": [step.loss for step in self.steps],
            "seconds": round(sum(step.seconds for step in self.steps), 1),  # those before an interruption, too
            "versions": {package: version(package) for package in ("nevergrad", "scipy", "torch", "transformers")},
        }


def learn_weights(
    loss: Loss,
    names: Sequence[str],
    steps: int = STEPS,
    l1: float = L1,
    bound: float = BOUND,
    seed: int = 0,
    log: Path | None = None,
    console: Console | None = None,
) -> Learned:
    """The weights of adapters under which `loss` and the penalty are least, of all that were tried.

    Args:
        loss: of weights, one for each of `names`; it is called `steps` times at most, and never twice for the same
            weights, about which COBYLA may ask again (it begins anew once it has converged).
        l1: α, by which the mean |w_p| counts beside the loss.
        bound: no weight's absolute value exceeds it.
        log: a JSON-lines file of the tries. Those that it holds already, from before an interruption, are not computed
            again, as the optimisation asks about the same weights as long as it is told the same losses.
        console: where progress is shown; None: nowhere.
    """
    known = _read_steps(log) if log and log.exists() else []
    tried: list[Step] = []
    losses: dict[tuple[float, ...], float] = {}  # of the weights in `tried`
    space = nevergrad.p.Array(init=np.zeros(len(names)), lower=-bound, upper=bound)
    space.random_state = np.random.RandomState(seed % 2**32)  # or it would take its own from numpy's global one
    optimizer = nevergrad.optimizers.Cobyla(parametrization=space, budget=steps)
    try:
        with progress_bar(console, "learning weights", steps) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="COBYLA: Invalid")  # the tolerance of 0 that nevergrad gives it
            for _ in range(steps):
                asked = optimizer.ask()
                weights = tuple(round(weight, 6) + 0.0 for weight in asked.value.tolist())  # 1e-18 is no adapter's use
                if known and known[0].weights == weights:
                    tried.append(known.pop(0))
                else:
                    known = []
                    tried.append(Step(weights, losses[weights], 0.0) if weights in losses else _try(loss, weights))
                    if log:
                        write_text(log, "".join(json.dumps(asdict(step)) + "\n" for step in tried))
                losses[weights] = tried[-1].loss
                optimizer.tell(asked, objective(tried[-1], l1))
                move = bar.restart_at if known else bar.move_to  # tries of an earlier start took no time now
                move(len(tried), f"{len(tried)}/{steps} loss {min(step.loss for step in tried):.4f}")
    finally:
        del optimizer  # COBYLA waits for losses in a thread of its own, which ends with this object
    best = min(tried, key=lambda step: objective(step, l1))  # what nevergrad recommends
    return Learned(dict(zip(names, best.weights, strict=True)), best.loss, tried[0].loss, tuple(tried))


def objective(step: Step, l1: float) -> float:
    """L(w) + α Σ |w_p| / P: the mean over adapters is the authors' code's, their paper has the sum."""
    return step.loss + l1 * sum(map(abs, step.weights)) / len(step.weights)


def adapter_locations(named: Sequence[str], folder: Path | None) -> list[str]:
    """Where the adapters lie that a user named one by one, and those that are folders within a `folder`.

    Raises:
        UserError: there are none, or one is named twice.
    """
    within = []
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--adapters {folder}: there is no such folder")
        within = sorted(str(path) for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [*named, *within]
    for place, location in enumerate(found):
        if location in found[:place]:
            raise UserError(f"adapter {location} is named twice")
    if not found:
        raise UserError(f"--adapters {folder}: it has no folders" if folder else "name each --adapter, or --adapters")
    return found


def draw_adapters(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the adapters, drawn with the seed, or all if there are no more; in their order."""
    drawn = set(random.Random(seed).sample(list(names), min(count, len(names))))
    return [name for name in names if name in drawn]


def answer_loss(
    model: ComposableModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    samples: Sequence[Sample],
    settings: GenerationSection,
) -> Loss:
    """The loss of the samples' answers under a fusion of adapters, as a function of their weights.

    It is the mean over samples of the mean cross-entropy of the answer's tokens and the end mark, nats; float32.

    Args:
        names: of the model's adapters, which the weights are for.
        settings: template, longest prompt, and how many rows and tokens a batch may have.

    Raises:
        UserError: not even the template fits, or the tokenizer has no end mark; later, when called: the batches do not
            fit into memory, or the adapters.
    """
    try:
        examples = [
            encode_example(tokenizer, sample, settings.template_text, settings.max_prompt_tokens) for sample in samples
        ]
    except ValueError as error:
        raise UserError(f"the longest prompt allowed is too short: {error}") from error
    vocabulary = vocabulary_of(model.base)
    padding = pad_token_id(tokenizer, vocabulary, settings.pad_token_id)
    batches = list(map(LeftPadding(padding), _batches(examples, settings, vocabulary)))

    def loss(weights: Sequence[float]) -> float:
        try:
            # One row of weights: they are composed once, for all rows of all batches, as the base's own call allows.
            with torch.inference_mode(), model.composed(names, [list(weights)], mode="fusion"):
                losses = [value for batch in batches for value in example_losses(model, batch).tolist()]
        except CompositionError as error:
            raise UserError(str(error)) from error
        except Exception as error:  # torch's allocators raise plain RuntimeErrors, too
            if not ran_out_of_memory(error):
                raise
            raise UserError(
                "the examples do not fit into memory; lower generation.batch_size of the profile, or --batch-size"
            ) from error
        return math.fsum(losses) / len(losses)

    return loss


def learn_checkpoint(
    generator: Generator, samples: Sequence[Sample], out: Path, steps: int, l1: float, seed: int, console: Console
) -> Learned:
    """Learn the weights of a generator's adapters for a new task from its examples; save their fusion.

    `out` becomes an ordinary PEFT checkpoint, with the record of how it came to be in its `lorahub.json`.

    Raises:
        UserError: it cannot be done, or no weights are better than none.
    """
    model = generator.model
    loss = answer_loss(model, generator.tokenizer, model.adapters, samples, generator.settings)
    learned = learn_weights(loss, model.adapters, steps, l1, seed=seed, console=console)
    if not any(learned.weights.values()):
        raise UserError(
            f"none of the {steps} weightings tried is better than the base alone (loss {learned.base_loss:.4f}); "
            "try more --steps, a lower --l1, or other adapters"
        )
    try:
        model.save_composition(model.adapters, list(learned.weights.values()), mode="fusion", path=out)
    except CompositionError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    conditions = {
        "base": str(getattr(model.base, "name_or_path", "")),
        "examples": len(samples),
        "generation": generator.settings.model_dump(include={"template", "max_prompt_tokens"}),
        "dtype": str(model.dtype).removeprefix("torch."),
        "steps": steps,
        "l1": l1,
        "bound": BOUND,
        "seed": seed,
    }
    write_json(out / RECORD_FILE, {**conditions, **learned.record()})
    return learned


def weights_table(learned: Learned) -> Table:
    """The weights as a table, the largest first, with the losses under it."""
    ordered = sorted(learned.weights.items(), key=lambda item: -abs(item[1]))
    return Table(
        ["weight"],
        [(name, [f"{weight:+.3f}"]) for name, weight in ordered],
        [f"loss of the answers: {learned.base_loss:.4f} with the base alone, {learned.loss:.4f} with these weights"],
    )


def _read_steps(log: Path) -> list[Step]:
    """The tries of a log. All its lines are whole, as it is written anew at every step."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [Step(tuple(line["weights"]), line["loss"], line["seconds"]) for line in lines]


def _try(loss: Loss, weights: tuple[float, ...]) -> Step:
    started = time.perf_counter()
    value = loss(weights)
    return Step(weights, value if math.isfinite(value) else WORST, round(time.perf_counter() - started, 3))


def _batches(
    examples: Sequence[dict[str, list[int]]], settings: GenerationSection, vocabulary: int
) -> Iterator[list[dict[str, list[int]]]]:
    """The examples in batches of similar length, the longest first: what does not fit into memory shows at once.

    All rows have logits for as many positions as the longest answer of their batch: no more than `LOGITS` in all.
    """
    batch: list[dict[str, list[int]]] = []
    rows, answer = 0, 0  # that a batch may have, and its longest answer
    for example in sorted(examples, key=lambda example: -len(example["input_ids"])):
        tokens = sum(label != IGNORED for label in example["labels"]) + 1
        if batch and (len(batch) == rows or (len(batch) + 1) * max(answer, tokens) * vocabulary > LOGITS):
            yield batch
            batch, answer = [], 0
        if not batch:
            rows = settings.rows_that_fit(len(example["input_ids"]))
        batch.append(example)
        answer = max(answer, tokens)
    if batch:
        yield batch
