"""The training of gates: at every module, a linear layer G [experts, d_in] that scores the experts by its input.

The layers of all modules are trained on the pool's samples, 20 a task, by the loss of the answers; the base and the
experts are frozen. The LoraRetriever paper (arXiv 2402.09997) says no more about its training. The optimizer,
its constants, and the start at G = 0 (the plain average) are choices of this project.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lora_retriever.errors import UserError
from lora_retriever.files import hash_path, write_bytes
from lora_retriever.generation.batches import ran_out_of_memory
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.examples import (
    IGNORED,
    LeftPadding,
    check_examples,
    encode_example,
    example_losses,
)
from lora_retriever.methods.parts.experts import Training, experts_of
from lora_retriever.progress import progress_bar
from peft_composition import AdapterMemoryError, CompositionError

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from peft_composition import Offered, Tokens

MATRICES_FILE = "matrices.safetensors"
SAVED_EVERY = 50
"""Number of steps between two saves. An interrupted training goes on from the last save."""

Weigh = Callable[[Tensor, "Tokens"], Tensor]
"""A function of a module's G [P, d_in] and its tokens that gives weights [batch, n, P]."""


@dataclass(frozen=True)
class Matrices:
    """The trained G of every module, and the experts that its rows score.

    Two objects are equal if they were read from equal files, also in another process. So a model recognises the gate of
    a run in every batch.
    """

    digest: str  # SHA-256 of the file
    experts: tuple[str, ...]
    by_module: Mapping[str, Tensor] = field(compare=False, repr=False)  # G [experts, d_in], float32

    @classmethod
    def load(cls, file: Path) -> Matrices:
        """The matrices that a training has written to a file."""
        experts, _, matrices, _ = _read(file)
        return cls(hash_path(file), experts, matrices)

    @classmethod
    def join(cls, files: Sequence[Path], joined: Path) -> None:
        """Write the matrices of several trainings, of different experts, to one file. Missing rows are zeros."""
        parts = [cls.load(file) for file in files]
        widths = {module: matrix.shape[1] for part in parts for module, matrix in part.by_module.items()}
        tensors = {
            f"matrix.{module}": torch.cat(
                [part.by_module.get(module, torch.zeros(len(part.experts), width)) for part in parts]
            )
            for module, width in sorted(widths.items())
        }
        experts = [expert for part in parts for expert in part.experts]
        _write(joined, tensors, experts, _State())

    def of(self, offered: Offered) -> Tensor:
        """The G [P, d_in] of the adapters that a module is offered, on its device.

        Raises:
            CompositionError: an adapter is not an expert.
        """
        strange = [name for name in offered.adapters if name not in self.experts]
        if strange:
            raise CompositionError(
                f"the gate cannot weigh adapter {strange[0]!r}; it was trained to weigh: {', '.join(self.experts)}"
            )
        rows = [self.experts.index(name) for name in offered.adapters]
        return self.by_module[offered.module][rows].to(offered.down.device)


def trained_matrices(context: Context, options: Training, name: str, mode: str, weigh: Weigh) -> Matrices:
    """The matrices for a context: read from the folder of this `name`, or trained now.

    Args:
        mode: how adapters are composed during training.
        weigh: how scores become weights during training.

    Raises:
        UserError: the backend has no model, or the training fails.
    """
    learn = partial(train, context, options, mode, weigh)
    try:
        return Matrices.load(context.learned(name, vars(options), learn) / MATRICES_FILE)
    except AdapterMemoryError as error:
        raise UserError(
            f"training the gate of {name} needs all experts in memory at once; raise adapters.memory of the "
            f"profile: {error}"
        ) from error
    except Exception as error:  # torch's allocators raise plain RuntimeErrors, too
        if not ran_out_of_memory(error):
            raise
        raise UserError(
            f"training the gate of {name}: a step does not fit into memory; lower the options batch_size "
            f"({options.batch_size}) or max_tokens of the method, or adapters.memory of the profile"
        ) from error


class GateInTraining:
    """A gate whose matrices are parameters. The matrix of a module, all zeros, is made at the module's first use.

    Attributes:
        experts: in the order of the matrices' rows.
        parameters: G [experts, d_in] float32 by module.
        prompts: [batch, n] bool, the tokens of the batch that belong to prompts. The answers after the prompts are
            hidden from a gate that reads whole prompts.
    """

    def __init__(self, weigh: Weigh) -> None:
        """`weigh` turns scores into weights."""
        self.experts: tuple[str, ...] = ()
        self.parameters: dict[str, nn.Parameter] = {}
        self.prompts = torch.zeros(0, 0, dtype=torch.bool)
        self._weigh = weigh

    def prepare(self, offered: Offered) -> str:
        """The module's name.

        The parameters cannot be returned, because parameters change, and the returned object is kept.
        """
        self.experts = offered.adapters
        if offered.module not in self.parameters:
            zeros = torch.zeros(len(offered.adapters), offered.down.shape[-1], device=offered.down.device)
            self.parameters[offered.module] = nn.Parameter(zeros)  # [P, d_in]
        return offered.module

    def weights(self, prepared: str, tokens: Tokens) -> Tensor:
        """The weights [batch, n, P], through which gradients reach the parameters."""
        prompts = self.prompts[:, -tokens.x.shape[1] :]  # a head is given the last positions only
        return self._weigh(self.parameters[prepared], replace(tokens, real=prompts.to(tokens.x.device)))


def train(
    context: Context, options: Training, mode: str, weigh: Weigh, folder: Path, adapter: str | None = None
) -> dict[str, Any]:
    """Train the matrices, or continue an interrupted training, and write the matrices to `folder`. Returns the record.

    An interrupted training ends with the same matrices as an uninterrupted training. The base comes back unchanged.

    Args:
        adapter: the only adapter that is weighed, on its own samples. None: the experts, on the samples of all tasks.

    Raises:
        UserError: the template does not fit into `max_tokens`, the base lacks a token of a sample, or the loss is NaN
            or infinite.
    """
    clock, generator, file = time.perf_counter(), context.generator, folder / MATRICES_FILE
    refuse_encoder_decoder(generator.model.config, "gates that are trained")
    model, examples, gate = generator.model, examples_of(context, options, adapter), GateInTraining(weigh)
    experts = experts_of(context.pool, context.seed) if adapter is None else (adapter,)
    collate = LeftPadding(generator.pad_id)
    epoch_steps = math.ceil(len(examples) / options.batch_size)
    steps = epoch_steps * options.epochs

    with torch.enable_grad(), _frozen(model.base):
        with model.composed(experts, torch.ones(1, len(experts)), mode, gate=gate):
            pass  # the gate now has a matrix for every module
        parameters = {module: gate.parameters[module] for module in sorted(gate.parameters)}
        optimizer = _optimizer(parameters.values(), options.learning_rate)
        state = _resumed(file, parameters, optimizer) if file.exists() else _State()
        name, begun = "training the gate", state.steps
        with progress_bar(context.console, name, steps, begun, f"{begun}/{steps}") as bar:
            for step in range(state.steps, steps):
                epoch, position = divmod(step, epoch_steps)
                order = random.Random(f"{context.seed}, epoch {epoch}").sample(range(len(examples)), len(examples))
                chosen = order[position * options.batch_size : (position + 1) * options.batch_size]
                batch = collate([examples[number] for number in chosen])
                gate.prompts = _prompts(batch)
                answers = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).to(model.device)  # [batch], tokens
                with model.composed(experts, torch.ones(len(chosen), len(experts)), mode, gate=gate):
                    losses = example_losses(model, batch)  # [batch]
                    loss = (losses * answers).sum() / answers.sum()  # [], the mean over the answers' tokens
                    loss.backward()
                state.note(step, epoch, loss.item(), int(answers.sum()))
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * (1 - step / steps)
                optimizer.step()
                optimizer.zero_grad()
                if state.steps % SAVED_EVERY == 0 and state.steps < steps:
                    _save(file, gate, state, optimizer)
                bar.move_to(step + 1, f"{step + 1}/{steps}")
        if not all(bool(parameter.isfinite().all()) for parameter in parameters.values()):
            raise UserError("training the gate: the last step gave NaN or infinity; use another dtype, or start again")
        _save(file, gate, state, None)
    return {
        "experts": {entry.model_name: entry.domain for entry in context.pool if entry.model_name in experts},
        "mode": mode,
        "examples": len(examples),
        "modules": len(parameters),
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "steps": steps,
        "losses": state.losses,
        "seconds": round(time.perf_counter() - clock, 1),  # since the last start
        "versions": {package: version(package) for package in ("torch", "transformers", "peft-composition")},
    }


def examples_of(context: Context, options: Training, adapter: str | None = None) -> list[dict[str, list[int]]]:
    """The samples of one adapter, or of all adapters of the pool, as tokens and labels. Prompts' labels do not count.

    Raises:
        UserError: the template alone does not fit into `max_tokens`, or the base lacks a token of a sample.
    """
    settings = context.generator.settings
    longest = settings.max_prompt_tokens if options.max_tokens is None else options.max_tokens
    entries = [entry for entry in context.pool if adapter in (None, entry.model_name)]
    samples = [sample for entry in entries for sample in entry.sample[: options.samples]]
    tokenizer = context.generator.tokenizer
    template = settings.template_for(tokenizer)
    try:
        examples = [encode_example(tokenizer, sample, template, longest) for sample in samples]
    except ValueError as error:
        raise UserError(f"option max_tokens of the gate is too small: {error}") from error
    check_examples(examples, samples, context.generator.limits)
    return examples


@dataclass
class _State:
    """The number of finished steps of a training, and the sums of its losses over answers' tokens by epoch."""

    steps: int = 0
    sums: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def note(self, step: int, epoch: int, loss: float, tokens: int) -> None:
        """Count a step. Raises `UserError` if its loss is NaN or infinite."""
        if not math.isfinite(loss):
            raise UserError(
                f"training the gate: the loss is {loss} at step {step + 1}; use another dtype (bfloat16 or float32), "
                "or lower the gate's learning_rate"
            )
        if epoch == len(self.sums):
            self.sums.append(0.0)
            self.tokens.append(0)
        self.steps = step + 1
        self.sums[epoch] += loss * tokens
        self.tokens[epoch] += tokens

    @property
    def losses(self) -> list[float]:
        """The mean loss of every epoch, nats per token."""
        return [round(total / tokens, 4) for total, tokens in zip(self.sums, self.tokens, strict=True)]


def _prompts(batch: Mapping[str, Any]) -> Tensor:
    """Which tokens belong to prompts, and not to padding or answers: bool [batch, length]."""
    prompts: Tensor = batch["attention_mask"].bool()  # [batch, length]
    kept = batch["labels"].shape[1]
    prompts[:, -kept:] &= batch["labels"] == IGNORED
    return prompts


def _optimizer(parameters: Collection[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW, with the rate of every matrix [experts, d_in] divided by its d_in.

    Raises:
        UserError: a rate is too large for float32.
    """
    by_width: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_width.setdefault(parameter.shape[1], []).append(parameter)
    rates = {width: learning_rate / width for width in by_width}
    if max(rates.values(), default=0.0) > torch.finfo(torch.float32).max:
        raise UserError(f"training the gate: the option learning_rate is {learning_rate}, too large for float32")
    groups: list[dict[str, Any]] = [
        {"params": of_width, "lr": rates[width], "initial_lr": rates[width]} for width, of_width in by_width.items()
    ]
    return torch.optim.AdamW(groups)


@contextmanager
def _frozen(base: nn.Module) -> Iterator[None]:
    """Within this context no parameter of the base gets a gradient, which would need as much memory as the base."""
    trainable = [parameter for parameter in base.parameters() if parameter.requires_grad]
    base.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _save(file: Path, gate: GateInTraining, state: _State, optimizer: torch.optim.Optimizer | None) -> None:
    """Write the matrices, and the optimizer's state of an unfinished training, in one atomic step."""
    tensors = {f"matrix.{module}": parameter.detach().cpu() for module, parameter in gate.parameters.items()}
    for place, values in (optimizer.state_dict()["state"] if optimizer is not None else {}).items():
        tensors |= {f"optimizer.{place}.{name}": value.cpu() for name, value in values.items()}
    _write(file, tensors, gate.experts, state)


def _write(file: Path, tensors: dict[str, Tensor], experts: Sequence[str], state: _State) -> None:
    """Write tensors, experts and the state of the training in one atomic step, in the form that `_read` reads."""
    # One entry of metadata: safetensors writes several in a changing order, and equal content must give equal files.
    write_bytes(file, save(tensors, {"training": json.dumps({"experts": list(experts), "state": vars(state)})}))


def _read(file: Path) -> tuple[tuple[str, ...], _State, dict[str, Tensor], dict[str, Tensor]]:
    """The experts, the state of the training, the matrices by module, and the optimizer's state."""
    parts: dict[str, dict[str, Tensor]] = {"matrix": {}, "optimizer": {}}
    with safe_open(file, "pt") as content:
        training = json.loads(content.metadata()["training"])
        for key in content.keys():  # noqa: SIM118 - the file is no dictionary
            part, _, name = key.partition(".")
            parts[part][name] = content.get_tensor(key)
    return tuple(training["experts"]), _State(**training["state"]), parts["matrix"], parts["optimizer"]


def _resumed(file: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> _State:
    """Set parameters and optimizer to the saved state of an interrupted training, and return the state."""
    _, state, matrices, flat = _read(file)
    with torch.no_grad():
        for module, parameter in parameters.items():
            parameter.copy_(matrices[module])
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        place, _, name = key.partition(".")
        values.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    return state
