"""The responses of adapters to a prompt, measured while the base model reads the prompt: one pass for all adapters.

Every adapter of the pool is offered to a gate that gives every adapter weight 0, so the base alone runs. The gate notes
how each adapter responds to the inputs. The pass costs about as much as reading the prompts. The measurements are
written to the results folder batch by batch, and all methods that use measurements share the same file. The module
registers no method. The pass uses no tasks and no answers; `responses.py` turns responses into compositions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from lora_retriever.errors import UserError
from lora_retriever.files import write_bytes
from lora_retriever.generation.batches import Halving, Request, plan_batches, ran_out_of_memory, unfinished
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.passes import read_prompts
from lora_retriever.methods.parts.spectral import computing_dtype, lengths, response_of, spectrum_of
from lora_retriever.progress import progress_bar
from lora_retriever.retrieval.scorers import Array
from peft_composition import AdapterMemoryError, Offered, Tokens

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context

FILE = "signals.safetensors"
QUERY = "q_proj"
SMALLEST = 1e-6
"""The number that is added to an entropy before the division 1 / entropy, in nats."""


@dataclass(frozen=True)
class Signals:
    """The responses of the pool's adapters to the rows' prompts: float32 [rows, adapters], in the pool's order.

    `norm` and `certainty` describe an adapter's output o = s B A x for the last token of the prompt at one module, the
    query projection of the last block. Both are 0 for an adapter that does not target this module. If no adapter
    targets a module named `q_proj`, the last module of the last block that adapters target is used.

    Attributes:
        norm: ‖o‖.
        certainty: 1 / (H + 1e-6), with H the entropy of softmax(o) in nats.
        share: the mean over the prompt's tokens and the adapter's modules of ‖s B A x‖ / (‖s B A‖_F ‖x‖), from 0 to 1.
    """

    norm: Array
    certainty: Array
    share: Array


def probe(context: Context) -> Signals:
    """The signals of the context's rows, measured now if necessary.

    Raises:
        UserError: the backend has no model, the pool or a single prompt does not fit into memory, or the model gives
            NaN or infinity.
    """
    texts = list(dict.fromkeys(row.inputs for row in context.rows))
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    folder = context.learned("probing", {"inputs": digest}, partial(_measure, context, texts), seeded=False)
    places = {text: place for place, text in enumerate(texts)}
    rows = [places[row.inputs] for row in context.rows]
    return Signals(**{name: values[rows] for name, values in load_file(folder / FILE).items()})


class Probe:
    """A gate that gives every adapter weight 0, and notes the adapters' responses. `take` returns the responses to one
    batch."""

    def __init__(self) -> None:
        """Make a gate that has measured nothing yet."""
        self.adapters: tuple[str, ...] = ()
        self.module = ""  # the module of `norm` and `certainty`, known when all modules are prepared
        self._up = torch.empty(0)  # (s B)^T of that module, [P, r, d_out]
        self._last: list[tuple[Tensor, Tensor, Tensor]] = []  # rows [b], norm and certainty [b, P]
        self._shares: list[tuple[Tensor, Tensor, Tensor]] = []  # rows [b], mean over tokens [b, P], targets [P]

    def prepare(self, offered: Offered) -> _Prepared:
        """The sizes of the updates, and the matrices that give an output's length from its inner products."""
        self.adapters = offered.adapters
        if not self.module or _depth(offered.module) > _depth(self.module):
            self.module, self._up = offered.module, offered.up
        device, dtype = offered.down.device, computing_dtype(offered)
        size = spectrum_of(offered).values.norm(dim=1)  # ‖s B A‖_F, [P]
        response = response_of(offered)  # [P, r, r]
        return _Prepared(offered.module, response.to(device, dtype), size.to(device, dtype), offered.targets)

    def weights(self, prepared: _Prepared, tokens: Tokens) -> Tensor:
        """Zeros [batch, n, P]."""
        responses = lengths(prepared.response, tokens.inner)  # ‖s B A x‖, [batch, n, P]
        x = tokens.x.to(responses.dtype).norm(dim=2, keepdim=True)  # ‖x‖, [batch, n, 1]
        smallest = torch.finfo(responses.dtype).tiny  # 0 / 0 becomes 0, for an update or an input of zeros
        shares = responses / (prepared.size * x).clamp(min=smallest) * tokens.real[..., None]  # [batch, n, P]
        means = shares.sum(dim=1) / tokens.real.sum(dim=1, keepdim=True)  # [batch, P]
        self._shares.append((tokens.rows, means, prepared.targets))
        if prepared.module == self.module:
            inner = tokens.inner[:, -1].to(responses.dtype)  # [batch, P, r]; prompts are padded on the left
            outputs = torch.einsum("bpr,pro->bpo", inner, self._up.to(inner))  # s B A x, [batch, P, d_out]
            certainty = 1 / (torch.special.entr(torch.softmax(outputs, dim=2)).sum(dim=2) + SMALLEST)  # [batch, P]
            self._last.append((tokens.rows, outputs.norm(dim=2), certainty * prepared.targets))
        return torch.zeros_like(responses)

    def take(self, batch: int) -> dict[str, Tensor]:
        """Return the signals of a batch by name, float32 [batch, P] on the CPU, and forget the responses."""
        norm, certainty, shares, modules = torch.zeros(4, batch, len(self.adapters))
        for rows, *values in self._last:
            norm[rows.cpu()], certainty[rows.cpu()] = (value.float().cpu() for value in values)
        for rows, means, targets in self._shares:
            shares.index_add_(0, rows.cpu(), means.float().cpu())
            modules.index_add_(0, rows.cpu(), targets.float().cpu().expand(len(rows), -1))
        self.forget()
        return {"norm": norm, "certainty": certainty, "share": shares / modules}

    def forget(self) -> None:
        """Forget the responses of a batch."""
        self._last, self._shares = [], []


@dataclass(frozen=True)
class _Prepared:
    module: str
    response: Tensor  # [P, r, r]
    size: Tensor  # [P]
    targets: Tensor  # [P] bool


def read(generator: Generator, gate: Probe, prompts: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Array]:
    """The signals by name of a batch of prompts, token ids each: float32 [prompts, adapters], ordered as `names`."""
    refuse_encoder_decoder(generator.model.config, "methods that probe the model")
    with generator.model.composed(names, torch.ones(len(prompts), len(names)), gate=gate):
        read_prompts(generator.model, prompts, generator.pad_id)
    columns = [gate.adapters.index(name) for name in names]
    return {name: values[:, columns].numpy() for name, values in gate.take(len(prompts)).items()}


def readings(
    generator: Generator, gate: Probe, batches: Sequence[Sequence[Request]], names: Sequence[str]
) -> Iterator[tuple[Sequence[Request], dict[str, Array]]]:
    """Requests with their signals, batch after batch. A batch that does not fit into memory is halved.

    Raises:
        UserError: the pool does not fit into memory, or a single prompt beside the pool does not.
    """

    def measured(piece: Sequence[Request]) -> dict[str, Array]:
        return read(generator, gate, [request.prompt.token_ids for request in piece], names)

    halving: Halving[Request, dict[str, Array]] = Halving(_explained, gate.forget)
    for batch in batches:
        yield from halving.results(batch, measured)


def _explained(piece: Sequence[Request], error: Exception) -> None:
    """Raise an error that smaller batches do not prevent. For every other error, return, so that the piece is
    halved."""
    if isinstance(error, AdapterMemoryError):  # a smaller batch would need as many adapters
        raise UserError(
            f"probing needs the whole pool in memory at once; raise adapters.memory of the profile: {error}"
        ) from error
    if not ran_out_of_memory(error):
        raise error
    if len(piece) == 1:
        raise UserError(
            f"probing: a prompt of {len(piece[0].prompt.token_ids)} tokens does not fit into memory by itself; lower "
            "generation.max_prompt_tokens of the profile"
        ) from error


def _measure(context: Context, texts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write the signals [texts, adapters] to the folder, and continue an interrupted file. Returns the record."""
    generator, names, file = context.generator, context.names, folder / FILE
    prompts = make_prompts(texts, generator.tokenizer, generator.settings)
    requests = [Request(place, prompt, Composition()) for place, prompt in enumerate(prompts)]
    signals = (
        load_file(file)
        if file.exists()
        else {name: np.full((len(texts), len(names)), np.nan, np.float32) for name in Signals.__dataclass_fields__}
    )
    done = np.flatnonzero(~np.isnan(signals["share"]).any(axis=1)).tolist()
    # The bar counts tokens: the longest prompts come first, so a count of prompts would predict too much time.
    tokens = [len(prompt.token_ids) for prompt in prompts]
    read_before = sum(tokens[index] for index in done)
    with progress_bar(context.console, "probing", sum(tokens), read_before, f"{len(done)}/{len(texts)}") as bar:
        batches = unfinished(plan_batches(requests, generator.settings), done)
        for read_together, measured in readings(generator, Probe(), batches, names):
            places = [request.id for request in read_together]
            for name, values in measured.items():
                if not np.isfinite(values).all():
                    raise UserError(
                        f"probing: the model gives NaN or infinity for the input {texts[places[0]][:40]!r}, or for one "
                        "of the same batch; set dtype: float32 or bfloat16"
                    )
                signals[name][places] = values
            write_bytes(file, save(signals))
            done = sorted({*done, *places})
            bar.move_to(sum(tokens[index] for index in done), f"{len(done)}/{len(texts)}")
    return {"inputs": len(texts), "adapters": names}


def _depth(module: str) -> tuple[bool, list[int]]:
    """A sort key: the query projection of the last block is last. Blocks are numbered in the modules' names."""
    return module.rpartition(".")[2] == QUERY, [int(number) for number in re.findall(r"\d+", module)]
