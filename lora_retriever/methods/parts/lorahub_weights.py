"""LoraHub: weights of adapters learned without gradients on a few examples (Huang et al. 2023, arXiv 2307.13269).

The composition is the fusion of the adapters, y = W x + (Σ w_p s_p B_p)(Σ w_p A_p) x, with w_p between -1.5 and 1.5.
The weights minimise L(w) + α Σ |w_p| / P, where L is the cross-entropy of the examples' answers and α = 0.05. The
authors use nevergrad's NGOpt, with 40 steps from w = 0. For these numbers, and for up to about 30 steps an adapter,
NGOpt chooses COBYLA, so COBYLA is the default here. For more steps NGOpt chooses other optimisers, which fail with
today's numpy. COBYLA draws nothing; the seed decides which adapters are drawn. The other optimisers, CMA-ES and random
search, draw weights with the seed. All optimisers begin with weights of 0, the base alone.

The authors' code divides the mean loss over a batch's tokens by the number of all examples, so the batch size weighs L
against the penalty. Here L is the mean over examples of the answer's mean loss, which the authors' code computes in
batches of one.

`learn_weights` optimises any function of weights, and `answer_loss` is the function for a model and its examples.
`learn_checkpoint` uses both for the command `lora-retriever lorahub`.
"""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from lora_retriever.generation.examples import (
    IGNORED,
    check_examples,
    encode_example,
    example_losses,
    padding_of,
)
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.limits import limits_of
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.special_tokens import pad_token_id
from lora_retriever.progress import progress_bar
from lora_retriever.tables import Table
from peft_composition import ComposableModel, CompositionError

RECORD_FILE = "lorahub.json"
ADAPTER_CONFIG = "adapter_config.json"
"""The file by which a folder is an adapter."""
LOGITS = 2**27
"""Maximum number of logits in a batch: half a GiB in float32, of which a few copies are made."""
WORST = 100.0
"""The loss that stands for NaN and infinity, in nats: far above any other loss, and finite for the optimisation."""

OPTIMIZERS = {"cobyla": "Cobyla", "cma": "CMA", "random": "RandomSearch"}
"""The optimisers, with their names in nevergrad."""
PENALTIES = ("mean", "sum")
"""The forms of the penalty: on the mean of the absolute weights, as the authors' code, or on their sum."""

Loss = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Step:
    """One step of the optimisation: the weights and their loss (in nats, without the penalty)."""

    weights: tuple[float, ...]
    loss: float
    seconds: float


@dataclass(frozen=True)
class Search:
    """How weights are searched for.

    Attributes:
        steps: number of weight vectors tried.
        l1: α, the factor of the penalty.
        bound: maximum absolute value of a weight.
        optimizer: a name of `OPTIMIZERS`.
        penalty: a name of `PENALTIES`.
    """

    steps: int = 40
    l1: float = 0.05
    bound: float = 1.5
    optimizer: str = "cobyla"
    penalty: str = "mean"

    def objective(self, step: Step) -> float:
        """L(w) + α Σ |w_p| / P, or with the penalty `sum`: L(w) + α Σ |w_p|.

        The authors' code takes the mean over adapters; their paper has the sum.
        """
        size = sum(map(abs, step.weights)) / (len(step.weights) if self.penalty == "mean" else 1)
        return step.loss + self.l1 * size


@dataclass(frozen=True)
class Learned:
    """The learned weights, with the steps of the optimisation.

    Attributes:
        weights: the weight of each adapter, by name; all 0 if no weights are better than the base alone.
        loss: the loss with these weights, in nats, without the penalty.
        base_loss: the loss of the base alone, in nats; never lower than `loss` with its penalty.
        steps: all steps in their order; the first has weights of 0.
    """

    weights: dict[str, float]
    loss: float
    base_loss: float
    steps: tuple[Step, ...]

    def record(self) -> dict[str, Any]:
        """The content of a record: everything but the weights of the single steps."""
        return {
            "weights": self.weights,
            "loss": self.loss,
            "base_loss": self.base_loss,
            "losses": [step.loss for step in self.steps],
            "seconds": round(sum(step.seconds for step in self.steps), 1),  # steps before an interruption count
            "versions": {package: version(package) for package in ("nevergrad", "scipy", "torch", "transformers")},
        }


def learn_weights(
    loss: Loss,
    names: Sequence[str],
    search: Search,
    seed: int = 0,
    log: Path | None = None,
    console: Console | None = None,
) -> Learned:
    """The weights with the least sum of loss and penalty, of all weights that the optimisation tried.

    Args:
        loss: a function of weights, one for each of `names`. `loss` is called at most `search.steps` times, and only
            once for the same weights. (When COBYLA has converged, it begins anew, and asks for the same weights again.)
        seed: the seed of an optimiser that draws.
        log: a JSON-lines file of the steps. Steps that the file has from before an interruption are not computed again,
            because an optimisation that gets the same losses asks for the same weights.
        console: where progress is shown. None: nowhere.
    """
    known = _read_steps(log) if log and log.exists() else []
    tried: list[Step] = []
    losses: dict[tuple[float, ...], float] = {}  # losses of the weights in `tried`
    optimizer = _optimizer(len(names), search, seed)
    try:
        with progress_bar(console, "learning weights", search.steps) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="COBYLA: Invalid")  # nevergrad sets a tolerance of 0
            for _ in range(search.steps):
                asked = optimizer.ask()
                weights = tuple(round(weight, 6) + 0.0 for weight in asked.value.tolist())  # 1e-18 becomes 0
                if known and known[0].weights == weights:
                    tried.append(known.pop(0))
                else:
                    known = []
                    tried.append(Step(weights, losses[weights], 0.0) if weights in losses else _try(loss, weights))
                    if log:
                        write_text(log, "".join(json.dumps(asdict(step)) + "\n" for step in tried))
                losses[weights] = tried[-1].loss
                optimizer.tell(asked, search.objective(tried[-1]))
                move = bar.restart_at if known else bar.move_to  # steps of an earlier start take no time now
                move(len(tried), f"{len(tried)}/{search.steps} loss {min(step.loss for step in tried):.4f}")
    finally:
        del optimizer  # COBYLA runs in a thread that ends with this object
    best = min(tried, key=search.objective)  # what nevergrad recommends
    return Learned(dict(zip(names, best.weights, strict=True)), best.loss, tried[0].loss, tuple(tried))


def _optimizer(weights: int, search: Search, seed: int) -> Any:
    """nevergrad's optimiser for a number of weights, which begins with weights of 0."""
    space = nevergrad.p.Array(init=np.zeros(weights), lower=-search.bound, upper=search.bound)
    space.random_state = np.random.RandomState(seed % 2**32)  # not from numpy's global state
    kind = getattr(nevergrad.optimizers, OPTIMIZERS[search.optimizer])
    optimizer = kind(parametrization=space, budget=search.steps)
    if search.optimizer != "cobyla":  # COBYLA begins with weights of 0 by itself
        optimizer.suggest(np.zeros(weights))
    return optimizer


def adapter_folders(named: Sequence[str], folder: Path | None) -> tuple[list[str], list[Path]]:
    """The adapters that a user named singly, and the adapters within a `folder`.

    Returns:
        The locations of the adapters, and the folders within `folder` that have no `adapter_config.json`.

    Raises:
        UserError: there is no adapter, or one adapter is named twice.
    """
    within: list[Path] = []
    passed_over: list[Path] = []
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--adapters {folder}: there is no such folder")
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError as error:
            raise UserError(f"--adapters {folder}: cannot be read ({error.strerror or error})") from error
        for path in inside:
            (within if (path / ADAPTER_CONFIG).is_file() else passed_over).append(path)
    found = [*named, *map(str, within)]
    if twice := next((location for index, location in enumerate(found) if location in found[:index]), None):
        raise UserError(f"adapter {twice} is named twice")
    if not found:
        raise UserError(
            f"--adapters {folder}: none of its folders has an {ADAPTER_CONFIG}"
            if folder
            else "name each --adapter, or a folder of adapters with --adapters"
        )
    return found, passed_over


def draw_adapters(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw `count` of the adapters with the seed, or all adapters if there are no more. Their order is kept."""
    drawn = set(random.Random(seed).sample(list(names), min(count, len(names))))
    return [name for name in names if name in drawn]


def answer_loss(
    model: ComposableModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    samples: Sequence[Sample],
    settings: GenerationSection,
) -> Loss:
    """The loss of the samples' answers under a fusion of adapters, as a function of the adapters' weights.

    The loss is the mean over samples of the mean cross-entropy of the answer's tokens and the EOS token, in nats.

    Args:
        names: the adapters of the model, in the order of the weights.
        settings: the template, the longest prompt, and the size of batches.

    Raises:
        UserError: the template alone is too long, the tokenizer has no EOS token, or a sample has a token that the
            base lacks, or more tokens than the base has positions. The returned function raises UserError, too, if the
            batches or the adapters do not fit into memory.
    """
    template = settings.template_for(tokenizer)
    try:
        examples = [encode_example(tokenizer, sample, template, settings.max_prompt_tokens) for sample in samples]
    except ValueError as error:
        raise UserError(f"generation.max_prompt_tokens is too small: {error}") from error
    limits = limits_of(model.base)
    check_examples(examples, samples, limits)
    vocabulary = limits.vocabulary
    padding = pad_token_id(tokenizer, vocabulary, settings.pad_token_id)
    batches = list(map(padding_of(model.base, tokenizer, padding), _batches(examples, settings, vocabulary)))

    def loss(weights: Sequence[float]) -> float:
        try:
            # One row of weights serves all rows of all batches: the adapters are composed once.
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
    generator: Generator,
    names: Sequence[str],
    samples: Sequence[Sample],
    out: Path,
    loss: Loss,
    search: Search,
    seed: int,
    console: Console,
    chosen: Mapping[str, Any],
) -> Learned:
    """Learn the weights of adapters from the examples of a new task, and save the fusion.

    `out` becomes an ordinary PEFT checkpoint. The file `lorahub.json` of this checkpoint records how the checkpoint was
    made.

    Args:
        names: the adapters, which the generator's model has loaded.
        loss: the function of the weights of `names` that is minimised.
        chosen: further choices for the record.

    Raises:
        UserError: the weights cannot be learned or saved, or no weights are better than the base alone.
    """
    model = generator.model
    learned = learn_weights(loss, names, search, seed, console=console)
    if not any(learned.weights.values()):
        raise UserError(
            f"none of the {search.steps} weight vectors tried is better than the base alone (loss "
            f"{learned.base_loss:.4f}); "
            "try more --steps, a lower --l1, or other adapters"
        )
    try:
        model.save_composition(names, list(learned.weights.values()), mode="fusion", path=out)
    except CompositionError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    conditions = {
        "base": str(getattr(model.base, "name_or_path", "")),
        "examples": len(samples),
        "generation": generator.settings.model_dump(
            include={"template", "system", "max_prompt_tokens"}, exclude_none=True
        ),
        "dtype": str(model.dtype).removeprefix("torch."),
        **asdict(search),
        **chosen,
        "seed": seed,
    }
    write_json(out / RECORD_FILE, {**conditions, **learned.record()})
    return learned


def weights_table(learned: Learned) -> Table:
    """A table of the weights, the largest first, with the losses below."""
    ordered = sorted(learned.weights.items(), key=lambda item: -abs(item[1]))
    return Table(
        ["weight"],
        [(name, [f"{weight:+.3f}"]) for name, weight in ordered],
        [f"loss of the answers: {learned.base_loss:.4f} with the base alone, {learned.loss:.4f} with these weights"],
    )


def _read_steps(log: Path) -> list[Step]:
    """The steps of a log. All lines are complete, because the file is written anew at every step."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [Step(tuple(line["weights"]), line["loss"], line["seconds"]) for line in lines]


def _try(loss: Loss, weights: tuple[float, ...]) -> Step:
    started = time.perf_counter()
    value = loss(weights)
    return Step(weights, value if math.isfinite(value) else WORST, round(time.perf_counter() - started, 3))


def _batches(
    examples: Sequence[dict[str, list[int]]], settings: GenerationSection, vocabulary: int
) -> Iterator[list[dict[str, list[int]]]]:
    """The examples in batches of similar length, the longest first, so that a lack of memory shows at once.

    Every row has logits for as many positions as the longest answer of its batch; a batch has at most `LOGITS`.
    """
    batch: list[dict[str, list[int]]] = []
    rows, answer = 0, 0  # maximum number of rows of the batch, and tokens of its longest answer
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
