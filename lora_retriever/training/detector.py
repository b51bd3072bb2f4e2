"""Training of a detection head with its adapter: which relations a text has (ReRe, arXiv 2105.10158, stage one).

The head reads the last hidden state of the prompt's last token. The prompt is the same as in an evaluation. The
threshold is chosen on validation samples alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lora_retriever.data.rows import Sample
from lora_retriever.data.triples import relations_of, triples_of
from lora_retriever.errors import UserError
from lora_retriever.files import new_folder, write_json
from lora_retriever.generation.detecting import Head, last_hidden, write_head
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.limits import check_text, limits_of, vocabulary_of
from lora_retriever.generation.prompt import encode_prompt, template_of
from lora_retriever.generation.special_tokens import pad_token_id
from lora_retriever.training.curve import Step, epoch_losses, write_curve
from lora_retriever.training.lora import (
    RECORD_FILE,
    TrainingOptions,
    check_trained,
    new_lora,
    run_trainer,
    save_lora,
    trained_parameters,
    versions,
)
from lora_retriever.training.losses import loss_of

DEFAULT_THRESHOLD = 0.5
"""The threshold of a head that was trained without validation samples."""

Array = NDArray[np.float64]


class Detection(torch.nn.Module):
    """A base model with an adapter, and a head on the last hidden state."""

    def __init__(self, model: torch.nn.Module, hidden: int, labels: int, loss: Callable[[Tensor, Tensor], Tensor]):
        """Begin with a head of small random weights, whose labels are all improbable."""
        super().__init__()
        self.model = model
        self.head = torch.nn.Linear(hidden, labels)
        torch.nn.init.normal_(self.head.weight, std=0.02)
        torch.nn.init.constant_(self.head.bias, -2.0)
        self._loss = loss
        self.pad_id = 0

    def forward(self, prompts: Sequence[Sequence[int]], labels: Tensor) -> dict[str, Tensor]:
        """The loss, and the logits [batch, labels].

        Args:
            prompts: token ids of each prompt.
            labels: [batch, labels], 1 for a label that is given.
        """
        states = last_hidden(self.model, prompts, self.pad_id).float()
        logits = self.head(states)
        return {"loss": self._loss(logits, labels.to(logits.device)), "logits": logits}


def labels_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The relations of all samples, in alphabetical order."""
    return tuple(sorted(set().union(*(relations_of(triples_of(sample.target)) for sample in samples))))


def label_matrix(samples: Sequence[Sample], labels: Sequence[str]) -> Array:
    """Which relations each sample has: [samples, labels], 1 or 0."""
    found = [relations_of(triples_of(sample.target)) for sample in samples]
    return np.array([[float(label in relations) for label in labels] for relations in found]).reshape(-1, len(labels))


def best_threshold(chances: Array, truth: Array) -> float:
    """The threshold with the highest micro F1 of the pairs of sample and label; of equal ones the highest.

    Args:
        chances: probabilities [samples, labels].
        truth: [samples, labels], 1 or 0.
    """
    order = np.argsort(-chances.ravel(), kind="stable")
    sorted_chances, right = chances.ravel()[order], truth.ravel()[order]
    if not right.any():
        return DEFAULT_THRESHOLD
    shared = np.cumsum(right)
    scores = 2 * shared / (np.arange(1, len(right) + 1) + right.sum())
    last_of_ties = np.append(sorted_chances[1:] != sorted_chances[:-1], True)
    best = int(np.argmax(np.where(last_of_ties, scores, -1)))
    following = sorted_chances[best + 1] if best + 1 < len(right) else 0.0
    return float((sorted_chances[best] + following) / 2)  # between two probabilities, so that rounding does not matter


def train_detector(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: TrainingOptions,
    out: Path,
    validation: Sequence[Sample] = (),
    on_step: Callable[[Step], None] | None = None,
    source: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train an adapter with a detection head.

    Write both, the record and the curve to the folder `out` in one atomic step.
    Args:
        base: the base model, which is frozen and comes back unchanged.
        samples: the examples; their targets are triples, one a line. Their relations are the head's labels.
        validation: examples on which the threshold is chosen, and whose F1 is recorded.
        on_step: called after every step.
        source: the data and the base of the training, for the record (`pool.made_of`). None: the record does not say.

    Returns:
        The record: options, labels, threshold, losses per epoch, seconds, versions.

    Raises:
        UserError: no sample has a relation, a sample has a token that the base lacks, the template does not fit into
            `max_tokens`, the base has no module of a name in `targets`, or the trained weights are not finite numbers.
    """
    refuse_encoder_decoder(base.config, "detection heads")
    labels = labels_of(samples)
    assert options.detect is not None, "the options name no loss"
    if not labels:
        raise UserError(f"{out.name}: no sample has a relation, so there is nothing to detect")
    given = label_matrix(samples, labels)
    (prompts, cut), (held_out, _) = (encoded(base, tokenizer, chosen, options) for chosen in (samples, validation))
    set_seed(options.seed)
    started = time.perf_counter()
    model = new_lora(base, options)
    try:
        share = float(given.mean())
        loss = loss_of(options.detect, share, options.pi, options.missing)
        detection = Detection(model, hidden_size(base), len(labels), loss).to(base.device)
        detection.pad_id = pad_token_id(tokenizer, vocabulary_of(base))
        examples = [{"prompt": prompt, "labels": row} for prompt, row in zip(prompts, given.tolist(), strict=True)]
        state = run_trainer(detection, options, base.device, examples, _together, on_step)
        chances = probabilities(detection, held_out, options.batch_size)
        truth = label_matrix(validation, labels)
        threshold = best_threshold(chances, truth) if validation else DEFAULT_THRESHOLD
        check_trained(out.name, trained_parameters(detection), f"lower the learning rate ({options.learning_rate})")
        found = chances >= threshold
        record = {
            "options": options.model_dump(mode="json"),
            **({} if source is None else {"made_of": dict(source)}),
            "samples": len(samples),
            "cut_prompts": cut,
            "labels": labels,
            "share_of_labels": share,
            "threshold": threshold,
            "validation_samples": len(validation),
            "validation_f1": 2 * float((found * truth).sum()) / max(float(found.sum() + truth.sum()), 1.0),
            "losses": epoch_losses(state.log_history),
            "validation_losses": [],
            "steps": state.global_step,
            "seconds": round(time.perf_counter() - started, 1),
            "versions": versions(),
        }
        with new_folder(out) as folder:
            save_lora(model, folder)
            head = detection.head
            write_head(Head(labels, head.weight.detach().cpu(), head.bias.detach().cpu(), threshold), folder)
            write_json(folder / RECORD_FILE, record)
            write_curve(state.log_history, folder)
    finally:
        model.unload()
    return record


def _together(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The prompts of a batch, and their labels [batch, labels]."""
    return {"prompts": [one["prompt"] for one in batch], "labels": torch.tensor([one["labels"] for one in batch])}


@torch.inference_mode()
def probabilities(detection: Detection, prompts: Sequence[list[int]], batch_size: int) -> Array:
    """The probabilities of the labels [prompts, labels]."""
    detection.eval()
    found = [np.zeros((0, detection.head.out_features))]
    for start in range(0, len(prompts), batch_size):
        states = last_hidden(detection.model, prompts[start : start + batch_size], detection.pad_id)
        found.append(detection.head(states.float()).sigmoid().double().cpu().numpy())
    return np.concatenate(found)


def encoded(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], options: TrainingOptions
) -> tuple[list[list[int]], int]:
    """The tokens of the samples' prompts, and how many prompts were cut because they were too long.

    Raises:
        UserError: the template is too long, or the base cannot read a prompt.
    """
    template = template_of(tokenizer, options.template, options.system)
    try:
        prompts = [encode_prompt(tokenizer, template, sample.inputs, options.max_tokens) for sample in samples]
    except ValueError as error:
        raise UserError(f"max_tokens is too small: {error}") from error
    limits = limits_of(base)
    for prompt in prompts:
        check_text(prompt.token_ids, limits)
    return [prompt.token_ids for prompt in prompts], sum(prompt.truncated_tokens > 0 for prompt in prompts)


def hidden_size(base: PreTrainedModel) -> int:
    """The length of a hidden state of a base model."""
    embedding: Any = base.get_input_embeddings()
    return int(embedding.embedding_dim)
