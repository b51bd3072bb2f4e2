"""How an adapter responds to the samples of its own task, measured while the base model reads these samples.

For every adapter and module: the mean and the standard deviation of ‖s B A x‖ over the tokens of the samples' inputs,
and the mean of A x over the samples, each sample being the mean over its tokens. The base alone reads the samples: the
adapter of a sample is offered to a gate that gives it weight 0. The module registers no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lora_retriever.errors import UserError
from lora_retriever.files import hash_path, write_bytes
from lora_retriever.generation.batches import Request, plan_batches
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.generator import make_prompts
from lora_retriever.generation.passes import read_prompts
from lora_retriever.methods.parts.spectral import computing_dtype, lengths, response_of
from lora_retriever.progress import progress_bar
from peft_composition import Offered, Tokens

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context

FILE = "own_samples.safetensors"
SEPARATOR = "\0"
"""The separator in the names of the file's tensors: adapter, module, and kind of measurement."""


@dataclass(frozen=True)
class OwnSamples:
    """The measurements, by adapter and module. Two objects are equal if they were read from equal files."""

    digest: str  # SHA-256 of the file
    tensors: Mapping[str, Tensor] = field(compare=False, repr=False)  # float64, by adapter, module and kind

    def of(self, offered: Offered) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [P] and deviation [P] of ‖s B A x‖, and the mean of A x [P, r], of a module's adapters: float64.

        For an adapter that does not target the module, all numbers are 0.
        """
        count, rank, _ = offered.down.shape
        norms, inner = torch.zeros(2, count, dtype=torch.float64), torch.zeros(count, rank, dtype=torch.float64)
        for place, adapter in enumerate(offered.adapters):
            measured = [self.tensors.get(SEPARATOR.join((adapter, offered.module, kind))) for kind in ("norm", "inner")]
            if measured[0] is not None and measured[1] is not None:
                norms[:, place] = measured[0]
                inner[place, : len(measured[1])] = measured[1][:rank]  # numbers beyond an adapter's rank are 0
        return norms[0], norms[1], inner


def own_samples(context: Context, samples: int) -> OwnSamples:
    """The measurements of a context's pool, made now if necessary, on at most `samples` samples of each adapter.

    Raises:
        UserError: the backend has no model, or the model gives NaN or infinity.
    """
    learn = partial(_measure, context, samples)
    file = context.learned("own_samples", {"samples": samples}, learn, seeded=False) / FILE
    return OwnSamples(hash_path(file), load_file(file))


class _Measure:
    """A gate that gives its only adapter weight 0, and sums its measurements by module."""

    def __init__(self) -> None:
        self.norms: dict[str, Tensor] = {}  # number of tokens, sum and sum of squares of ‖s B A x‖: [3]
        self.inner: dict[str, Tensor] = {}  # sum over samples of the mean of A x, [r]

    def prepare(self, offered: Offered) -> tuple[str, Tensor]:
        """The module's name, and the factor [1, r, r] that gives norms."""
        return offered.module, response_of(offered).to(offered.down.device, computing_dtype(offered))

    def weights(self, prepared: tuple[str, Tensor], tokens: Tokens) -> Tensor:
        """Zeros [batch, n, 1]."""
        module, response = prepared
        norms = lengths(response, tokens.inner)  # [batch, n, 1]
        real = tokens.real[..., None]  # [batch, n, 1]
        found = norms.double().where(real, 0)
        sums = torch.stack([real.sum().double(), found.sum(), found.square().sum()]).cpu()  # [3]
        inner = tokens.inner[:, :, 0].double().where(real, 0).sum(dim=1) / real.sum(dim=1)  # [batch, r]
        for kept, values in ((self.norms, sums), (self.inner, inner.sum(dim=0).cpu())):
            kept[module] = kept[module] + values if module in kept else values
        return torch.zeros_like(norms)


def _measure(context: Context, samples: int, folder: Path) -> dict[str, Any]:
    """Measure all adapters, and write the file. Returns the record."""
    generator, tensors, pool = context.generator, {}, context.pool
    refuse_encoder_decoder(generator.model.config, "methods that measure adapters on their samples")
    with progress_bar(context.console, "reading samples", len(pool), text=f"0/{len(pool)}") as bar:
        for number, entry in enumerate(pool, start=1):
            gate, name = _Measure(), entry.model_name
            texts = [sample.inputs for sample in entry.sample[:samples]]
            prompts = make_prompts(texts, generator.tokenizer, generator.settings)
            requests = [Request(place, prompt, Composition()) for place, prompt in enumerate(prompts)]
            for batch in plan_batches(requests, generator.settings):
                ids = [request.prompt.token_ids for request in batch]
                with generator.model.composed([name], torch.ones(len(ids), 1), gate=gate):
                    read_prompts(generator.model, ids, generator.pad_id)
            for module, (tokens, total, squares) in gate.norms.items():
                mean = total / tokens
                variance = (squares / tokens - mean.square()).clamp(min=0)
                tensors[SEPARATOR.join((name, module, "norm"))] = torch.stack([mean, variance.sqrt()])
                tensors[SEPARATOR.join((name, module, "inner"))] = gate.inner[module] / len(texts)
            bar.move_to(number, f"{number}/{len(pool)}")
    if not all(bool(values.isfinite().all()) for values in tensors.values()):
        raise UserError("reading samples: the model gives NaN or infinity; set dtype: float32 or bfloat16")
    write_bytes(folder / FILE, save(tensors))
    return {"samples": samples, "adapters": context.names}
