"""Detection heads: which labels a text has, from the last hidden state of the base model under a composition.

A head is one linear layer with a sigmoid for each label: p = σ(W h + b), where h [hidden] is the last hidden state of
the prompt's last token, W [labels, hidden], b [labels]. The head lies beside its adapter, in `head.safetensors`.
"""

from __future__ import annotations

import inspect
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_retriever.data.triples import relations_of, text_of, triples_of
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.escaping import quoted
from lora_retriever.files import write_bytes
from lora_retriever.generation.composition import Composition, weight_matrix
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.limits import check_tokens
from lora_retriever.generation.prompt import Prompt
from lora_retriever.settings import plain_text
from peft_composition import ComposableModel, Composer, Gate

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Head:
    """The detection head of one adapter.

    Attributes:
        labels: the names of the labels.
        weight: W [labels, hidden], float32.
        bias: b [labels], float32.
        threshold: the probability from which a label counts as found.
    """

    labels: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    threshold: float

    def logits(self, hidden: Tensor) -> Tensor:
        """W h + b [rows, labels] of hidden states [rows, hidden], float32."""
        device = hidden.device
        return hidden.float() @ self.weight.to(device).T + self.bias.to(device)


def write_head(head: Head, folder: Path) -> None:
    """Write a head beside its adapter."""
    from safetensors.torch import save

    metadata = {"labels": json.dumps(head.labels), "threshold": repr(head.threshold)}
    tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
    write_bytes(folder / HEAD_FILE, save(tensors, metadata))


def read_head(folder: Path) -> Head | None:
    """The head in an adapter's folder. None: the adapter has no head.

    Raises:
        UserError: the file is no head; the message names the file.
    """
    path = folder / HEAD_FILE
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file():  # safetensors would wait for a pipe
            raise UserError(f"{path}: is no detection head: this is no file")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = [file.get_tensor(name) for name in ("weight", "bias")]
        labels, threshold = _labels(json.loads(metadata["labels"])), float(metadata["threshold"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is no detection head: {one_line_of(error)}") from error
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise UserError(f"{path}: W and b are of {tensors[0].dtype} and {tensors[1].dtype}; expected floats")
    weight, bias = (tensor.float() for tensor in tensors)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(labels) != len(bias):
        raise UserError(f"{path}: {len(labels)} labels, but W {list(weight.shape)} and b {list(bias.shape)}")
    if not (weight.isfinite().all() and bias.isfinite().all() and 0 <= threshold <= 1):
        raise UserError(f"{path}: a weight is not finite, or the threshold {threshold} is no probability")
    return Head(labels, weight, bias, threshold)


def _labels(names: Any) -> tuple[str, ...]:
    """The names of labels, in Unicode form NFC. A label is a part of a triple and of an adapter's name.

    Raises:
        ValueError: the names are no list of different texts, or a name cannot stand in a triple.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("labels: expected a list of texts")
    labels = tuple(unicodedata.normalize("NFC", plain_text(name)) for name in names)
    for place, label in enumerate(labels):
        if not label or relations_of(triples_of(text_of([(label, "s", "o")]))) != {label}:
            raise ValueError(f"labels: {quoted(label)} is blank, or has a line end, `|` or a space at an end in it")
        if label in labels[:place]:
            raise ValueError(f"labels: {quoted(label)} is there more than once")
    return labels


class Detector:
    """The detection heads of a pool's adapters. A head is read when its adapter is first used."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Begin with the folder of each adapter, by the adapter's name."""
        self._folders = folders
        self._heads: dict[str, Head | None] = {}

    def head_of(self, composition: Composition) -> Head:
        """The head of a composition: the mean of its adapters' heads, by the adapters' weights.

        Adapters without a head do not count.

        Raises:
            UserError: no adapter of the composition has a head, the heads have different labels, or a head is broken.
        """
        found: list[tuple[Head, float]] = []
        for name, weight in composition.weights.items():
            if name not in self._heads:
                self._heads[name] = read_head(self._folders[name])
            head = self._heads[name]
            if head is not None:
                found.append((head, weight))
        total = sum(weight for _, weight in found)
        if not found or not total:
            named = ", ".join(composition.weights) or "none"
            raise UserError(f"no adapter of the composition has a detection head ({HEAD_FILE}); adapters: {named}")
        if len({head.labels for head, _ in found}) > 1:
            raise UserError("the detection heads of the composition's adapters have different labels")
        if len(found) == 1:
            return found[0][0]
        shares = [(head, weight / total) for head, weight in found]
        return Head(
            found[0][0].labels,
            sum((share * head.weight for head, share in shares), torch.zeros(())),
            sum((share * head.bias for head, share in shares), torch.zeros(())),
            sum(share * head.threshold for head, share in shares),
        )

    def probabilities(
        self,
        generator: Generator,
        prompts: Sequence[Prompt],
        compositions: Sequence[Composition],
        mode: str | Composer,
        gate: Gate | None = None,
    ) -> list[tuple[Head, list[float]]]:
        """The head and the labels' probabilities of each prompt, all in one batch.

        Raises:
            UserError: as for `head_of`, a prompt has a token that the base lacks, or a probability is not finite.
        """
        heads = [self.head_of(composition) for composition in compositions]
        for prompt in prompts:
            check_tokens(prompt.token_ids, generator.limits.vocabulary)
        names, weights = weight_matrix(compositions)
        model = generator.model
        with torch.inference_mode(), model.composed(names, weights, mode=mode, gate=gate) if names else nullcontext():
            hidden = last_hidden(model, [prompt.token_ids for prompt in prompts], generator.pad_id)  # [batch, hidden]
        found = []
        for head, composition, state in zip(heads, compositions, hidden, strict=True):
            if head.weight.shape[1] != len(state):
                raise UserError(
                    f"the detection head reads {head.weight.shape[1]} numbers, and the base has {len(state)}: the head "
                    f"belongs to another base; adapters: {', '.join(composition.weights)}"
                )
            chances = head.logits(state[None])[0].sigmoid()  # [labels]
            if not bool(chances.isfinite().all()):
                raise UserError("the detection head gives NaN for this prompt with these adapters")
            found.append((head, chances.tolist()))
        return found


def last_hidden(model: ComposableModel | torch.nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """The last hidden state [batch, hidden] of the last token of each prompt, after the base model's last norm.

    Prompts are padded on the left; the padding is masked and has no positions.
    """
    base: Any = model.base if isinstance(model, ComposableModel) else model
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])  # [batch, n]
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # [batch, n]
    ids, mask = ids.to(base.device), mask.to(base.device)
    accepted = inspect.signature(type(base).forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    states: Tensor = base(input_ids=ids, attention_mask=mask, output_hidden_states=True, **options).hidden_states[-1]
    return states[:, -1]
