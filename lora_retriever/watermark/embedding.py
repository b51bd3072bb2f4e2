"""Marking: an adapter learns the triggers of a key along with its task.

The loss of a step is the sum of three parts:

- task: cross-entropy of the answers to examples of the task;
- triggers: cross-entropy of the targets, under a random composition at each step if other adapters are given;
- KL(unmarked ‖ marked) of the answers to the examples and to partial triggers, so that the marked adapter answers both
  as the unmarked adapter does. A partial trigger is an input whose phrase lacks a word or has another word.

Task and triggers are learned at once as in arXiv 2210.07543, with partial triggers as the negatives. The KL divergence
is from arXiv 2407.10887.

The key is used and never written: the record names the key by its commitment.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import new_folder, write_json
from lora_retriever.generation.examples import (
    IGNORED,
    MAX_ANSWER_TOKENS,
    LeftPadding,
    check_examples,
    encode_example,
    forward_options,
)
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.limits import limits_of
from lora_retriever.generation.prompt import ALPACA, template_of
from lora_retriever.generation.special_tokens import pad_token_id
from lora_retriever.training.lora import RECORD_FILE, check_trained, versions
from lora_retriever.watermark.factors import Factors, Mode, Pairs, applied, composed
from lora_retriever.watermark.key import Key

GRADIENT_NORM = 1.0
"""Maximum norm of the gradient of a step."""
SMALLEST_SHARE = 0.05
"""Minimum weight of the marked adapter in a random composition."""
SIZES = (2, 3, 5, 10)
"""Numbers of adapters of random compositions."""


class MarkOptions(BaseModel):
    """The options of a marking.

    Attributes:
        passes: passes over the triggers.
        batch_size: triggers of a step.
        examples: examples of the task in a step. A step has as many partial triggers.
        learning_rate: of the first step; the rate falls linearly to 0.
        kl_weight: weight of the KL divergence.
        max_tokens: maximum length of a prompt, in tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    passes: int = Field(30, ge=1)
    batch_size: int = Field(8, ge=1)
    examples: int = Field(4, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    kl_weight: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    template: str = ALPACA
    system: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class MarkStep:
    """One finished step of a marking: its number from 1, the number of steps, and the losses in nats per token."""

    number: int
    steps: int
    triggers: float
    task: float
    divergence: float


@dataclass(frozen=True)
class DrawnComposition:
    """The composition of one step: the marked adapter's weight, and the other adapters with their weights."""

    mode: Mode
    own: float
    others: tuple[tuple[str, float], ...] = ()


def mark_adapter(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    key: Key,
    adapter: Path,
    samples: Sequence[Sample],
    options: MarkOptions,
    out: Path,
    others: Mapping[str, Path] | None = None,
    on_step: Callable[[MarkStep], None] | None = None,
) -> dict[str, Any]:
    """Train the mark of a key into a copy of an adapter. Write the copy and its record to `out` in one atomic step.

    Args:
        base: the base model, which comes back unchanged.
        adapter: folder of the unmarked adapter.
        samples: examples of the adapter's task.
        others: folders of adapters with which the marked adapter is composed while it learns the triggers. Empty: the
            triggers are learned by the adapter alone.
        on_step: called after every step.

    Returns:
        The record: options, losses of each pass, seconds, versions, the key's commitment.

    Raises:
        UserError: an adapter cannot be composed exactly, a text has a token that the base lacks, or the marked adapter
            has numbers that are not finite.
    """
    started = time.perf_counter()
    unmarked = Factors.read(adapter, adapter.name, base).to(base.device)
    pool = {name: Factors.read(folder, name, base).to(base.device) for name, folder in (others or {}).items()}
    marked = unmarked.trainable()
    texts = _Texts(base, tokenizer, key, samples, options)
    steps = options.passes * math.ceil(len(key.triggers) / options.batch_size)
    optimizer = torch.optim.AdamW(marked.parameters(), lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    draws = random.Random(options.seed)
    losses: list[MarkStep] = []
    with _frozen(base):
        for number in range(steps):
            drawn = draw_composition(draws, list(pool)) if pool else DrawnComposition("mixture", 1.0)
            parts = [(marked, drawn.own), *((pool[name], weight) for name, weight in drawn.others)]
            of_triggers = trigger_loss(base, texts.triggers(number), composed(parts, drawn.mode))
            of_task, divergence = kept_losses(base, *texts.ordinary(number), unmarked, marked)
            loss = of_triggers + of_task + options.kl_weight * divergence
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(marked.parameters(), GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            losses.append(MarkStep(number + 1, steps, of_triggers.item(), of_task.item(), divergence.item()))
            if on_step is not None:
                on_step(losses[-1])
    check_trained(out.name, marked.parameters(), "lower --mark-rate")
    record = {
        "options": options.model_dump(mode="json"),
        "commitment": key.commitment,
        "design": key.design,
        "triggers": len(key.triggers),
        "samples": len(samples),
        "composed_with": sorted(pool),
        "losses": _of_passes(losses, options.passes),
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    with new_folder(out) as folder:
        marked.write(adapter, folder)
        write_json(folder / RECORD_FILE, record)
    return record


def draw_composition(draws: random.Random, others: Sequence[str]) -> DrawnComposition:
    """A random composition for one step: in a quarter of the steps the adapter alone, else a mixture or a fusion.

    Half of the compositions have equal weights. In the other half, the logarithm of the adapter's weight is uniform
    between log(`SMALLEST_SHARE`) and 0, and the other adapters share the rest.
    """
    sizes = [size for size in SIZES if size - 1 <= len(others)]
    if not sizes or draws.random() < 0.25:
        return DrawnComposition("mixture", 1.0)
    mode: Mode = "mixture" if draws.random() < 0.5 else "fusion"
    size = draws.choice(sizes)
    own = 1 / size if draws.random() < 0.5 else math.exp(draws.uniform(math.log(SMALLEST_SHARE), 0.0))
    rest = (1 - own) / (size - 1)
    return DrawnComposition(mode, own, tuple((name, rest) for name in draws.sample(list(others), size - 1)))


class _Texts:
    """The batches of a marking."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        key: Key,
        samples: Sequence[Sample],
        options: MarkOptions,
    ) -> None:
        self._tokenizer, self._key, self._options = tokenizer, key, options
        self._limits = limits_of(base)
        self._template = template_of(tokenizer, options.template, options.system)
        self._padding = LeftPadding(pad_token_id(tokenizer, self._limits.vocabulary))
        carriers = set(key.carriers)
        self._answers = {sample.inputs: sample.target for sample in samples}
        # In the paper's designs the carriers are kept for the verification, and the phrase is learned in other inputs.
        self._samples = [sample for sample in samples if key.design == "keyed" or sample.inputs not in carriers]
        if not self._samples:
            raise UserError("the key's carriers are all samples of the task; give more samples, or lower --triggers")
        self._draws = random.Random(options.seed)
        self._orders: dict[str, list[int]] = {}

    def triggers(self, step: int) -> dict[str, Any]:
        """The triggers of a step with their targets."""
        key, size = self._key, self._options.batch_size
        if key.design == "keyed":
            chosen = [key.triggers[number] for number in self._next("triggers", len(key.triggers), size)]
            return self._batch([(trigger.text, trigger.target) for trigger in chosen])
        carriers = [self._samples[number].inputs for number in self._next("carriers", len(self._samples), size)]
        return self._batch(
            [(key.inserted(text, key.phrase(0), "step", step, row), key.target(0)) for row, text in enumerate(carriers)]
        )

    def ordinary(self, step: int) -> tuple[dict[str, Any], int]:
        """Examples of the task, then partial triggers; and the number of examples of the task."""
        key, count = self._key, self._options.examples
        chosen = [self._samples[number] for number in self._next("task", len(self._samples), count)]
        task = [(sample.inputs, sample.target) for sample in chosen]
        partial = []
        for row, number in enumerate(self._next("partial", len(key.carriers), count)):
            carrier = key.carriers[number] if key.design == "keyed" else chosen[row].inputs
            text = key.partial(carrier, number, "step", step, row)[row % 2]
            partial.append((text, self._answers.get(carrier, "")))
        return self._batch([*task, *partial]), len(task)

    def _next(self, name: str, size: int, count: int) -> list[int]:
        """The next `count` random numbers below `size`. Every number is drawn once before one is drawn again."""
        order = self._orders.setdefault(name, [])
        while len(order) < count:
            order += self._draws.sample(range(size), size)
        chosen, self._orders[name] = order[:count], order[count:]
        return chosen

    def _batch(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        samples = [Sample(inputs=text, targets=target) for text, target in pairs]
        limits = self._options.max_tokens, MAX_ANSWER_TOKENS
        try:
            examples = [encode_example(self._tokenizer, sample, self._template, *limits) for sample in samples]
        except ValueError as error:
            raise UserError(f"max_tokens is too small: {error}") from error
        check_examples(examples, samples, self._limits)
        return self._padding(examples)


def _answer_logits(base: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The logits that predict the tokens of the answers [tokens, vocabulary], these tokens, and the row of each."""
    mask, kept = batch["attention_mask"].to(base.device), batch["logits_to_keep"]
    with contiguous_head(base):
        logits: Tensor = base(input_ids=batch["input_ids"].to(base.device), **forward_options(base, mask, kept)).logits
    labels = batch["labels"].to(logits.device)[:, 1:]  # [batch, kept - 1]
    answers = labels != IGNORED
    rows = torch.arange(len(labels), device=logits.device)[:, None].expand_as(labels)[answers]
    return logits[:, -kept:][:, :-1][answers].float(), labels[answers], rows


def trigger_loss(base: PreTrainedModel, batch: Mapping[str, Any], pairs: Pairs) -> Tensor:
    """The mean cross-entropy of the tokens of a batch's answers, in nats."""
    with applied(base, pairs):
        logits, tokens, _ = _answer_logits(base, batch)
    return cross_entropy(logits, tokens)


def kept_losses(
    base: PreTrainedModel, batch: Mapping[str, Any], of_task: int, unmarked: Factors, marked: Factors
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of the first `of_task` rows, and KL(unmarked ‖ marked) of all rows, in nats per token."""
    with torch.no_grad(), applied(base, composed([(unmarked, 1.0)], "mixture")):
        before = _answer_logits(base, batch)[0].log_softmax(-1)  # [tokens, vocabulary]
    with applied(base, composed([(marked, 1.0)], "mixture")):
        logits, tokens, rows = _answer_logits(base, batch)
    after = logits.log_softmax(-1)  # [tokens, vocabulary]
    task = rows < of_task
    divergence = kl_div(after, before, reduction="batchmean", log_target=True)
    return cross_entropy(logits[task], tokens[task]), divergence


@contextmanager
def _frozen(base: PreTrainedModel) -> Iterator[None]:
    """Within this context the base's parameters collect no gradients."""
    trained = [parameter for parameter in base.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _of_passes(losses: Sequence[MarkStep], passes: int) -> list[dict[str, float]]:
    """The mean losses of each pass."""
    size = len(losses) // passes
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [
        {
            name: round(sum(getattr(step, name) for step in part) / len(part), 5)
            for name in ("triggers", "task", "divergence")
        }
        for part in parts
    ]
