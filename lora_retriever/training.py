"""Training one LoRA on one pool entry's samples, with transformers' Trainer and PEFT.

The loss is taken on the answer only. Both the bundled miniature's adapters and a user's come from here; what is looped
over and resumed is the business of `scripts/train_loras.py`.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lora_retriever.data import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import write_json
from lora_retriever.heads import contiguous_head
from lora_retriever.prompt import ALPACA, encode_prompt
from peft_composition import ComposableModel

IGNORED = -100  # the label that transformers' loss passes over
RECORD_FILE = "training.json"


class TrainingOptions(BaseModel):
    """How a LoRA is trained. Rank and alpha are the paper's; it publishes none of the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(6, ge=1)
    alpha: float = Field(12, gt=0)
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = Field(0.05, ge=0, lt=1)
    epochs: float = Field(5, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    batch_size: int = Field(4, ge=1)
    max_tokens: int = Field(512, ge=1)
    max_answer_tokens: int = Field(512, ge=1)
    template: str = ALPACA
    seed: int = 0


def train_adapter(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: TrainingOptions,
    out: Path,
    validation: Sequence[Sample] = (),
    initial: Path | None = None,
) -> dict[str, Any]:
    """Train one LoRA and write it, with a record of how it was made, to the folder `out` in one atomic step.

    Args:
        base: the frozen base model; it is given back unchanged. If it is of 16 bits, the adapter is float32.
        samples: the examples trained on.
        validation: examples whose loss is recorded after every epoch; none of them is trained on.
        initial: folder of a LoRA of the same shape to go on from; without it, from PEFT's initialisation.

    Returns:
        The record: options, losses per epoch, seconds, versions.
    """
    set_seed(options.seed)
    started = time.perf_counter()
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # PEFT annotates int, and takes any number
        target_modules=list(options.targets),
        lora_dropout=options.dropout,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    if initial is not None:
        set_peft_model_state_dict(model, load_file(initial / SAFETENSORS_WEIGHTS_NAME))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=options.epochs,
                learning_rate=options.learning_rate,
                per_device_train_batch_size=options.batch_size,
                per_device_eval_batch_size=options.batch_size,
                lr_scheduler_type="linear",
                train_sampling_strategy="group_by_length",
                seed=options.seed,
                eval_strategy="epoch" if validation else "no",
                save_strategy="no",
                logging_strategy="epoch",
                disable_tqdm=True,
                report_to="none",
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                use_cpu=base.device.type == "cpu",
            ),
            train_dataset=[encode_example(tokenizer, sample, options) for sample in samples],
            eval_dataset=[encode_example(tokenizer, sample, options) for sample in validation],
            data_collator=LeftPadding(_pad_id(tokenizer)),
        )
        trainer.remove_callback(PrinterCallback)  # the losses go into the record
        with contiguous_head(base):
            trainer.train()
    record = {
        "options": options.model_dump(mode="json"),
        "samples": len(samples),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "validation_losses": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "steps": trainer.state.global_step,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as unfinished:
        finished = Path(unfinished) / out.name
        model.save_pretrained(str(finished))
        (finished / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_json(finished / RECORD_FILE, record)
        finished.rename(out)
    model.unload()
    return record


def encode_example(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, options: TrainingOptions
) -> dict[str, list[int]]:
    """Token ids of prompt, answer and end mark, and their labels: the prompt's are `IGNORED`.

    The prompt is cut as at evaluation. An answer of more than `max_answer_tokens` loses its end, and then has no end
    mark.

    Raises:
        UserError: the tokenizer has no end mark.
        ValueError: not even the template fits into `max_tokens`.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no end mark, so no answer's end can be learned")
    prompt = encode_prompt(tokenizer, options.template, sample.inputs, options.max_tokens).token_ids
    answer = [*tokenizer(sample.targets, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    answer = answer[: options.max_answer_tokens]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


class LeftPadding:
    """Collates examples so that their answers end together; logits are then needed for the last few positions only.

    A large vocabulary makes the logits the dearest part of a small model's step (Gemma 3 270M: 256k words).
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        length = max(len(example["input_ids"]) for example in examples)
        answer = max(sum(label != IGNORED for label in example["labels"]) for example in examples)
        kept = min(answer + 1, length)  # one more: a position's logits speak of the next token

        def padded(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([[filler] * (length - len(e[key])) + e[key] for e in examples])

        mask = torch.tensor([[0] * (length - len(e["input_ids"])) + [1] * len(e["input_ids"]) for e in examples])
        return {
            "input_ids": padded("input_ids", self.pad_id),  # [batch, length]
            "attention_mask": mask,  # [batch, length]
            "labels": padded("labels", IGNORED)[:, -kept:],  # [batch, kept]
            "logits_to_keep": kept,
        }


def example_losses(model: ComposableModel, batch: dict[str, Any]) -> Tensor:
    """The mean cross-entropy of every example's answer [batch], nats, float32, under what is composed now.

    Args:
        batch: of `LeftPadding`.
    """
    accepted = inspect.signature(type(model.base).forward).parameters
    mask = batch["attention_mask"].to(model.device)  # [batch, length]
    kept = batch["logits_to_keep"]
    options: dict[str, Any] = {"use_cache": False}
    if not bool(mask.all()):
        options["attention_mask"] = mask
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)  # as without padding
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = kept
    with contiguous_head(model.base):
        logits = model.base(input_ids=batch["input_ids"].to(model.device), **options).logits  # [batch, kept or n, V]
    logits = logits[:, -kept:]
    labels = batch["labels"].to(logits.device)[:, 1:]  # [batch, kept - 1]: a position speaks of the next token
    answers = labels != IGNORED
    losses = torch.zeros(labels.shape, device=logits.device)
    losses[answers] = cross_entropy(logits[:, :-1][answers].float(), labels[answers], reduction="none")
    return losses.sum(dim=1) / answers.sum(dim=1)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert pad_id is not None, "the tokenizer has neither a padding nor an end token"
    return int(pad_id)
