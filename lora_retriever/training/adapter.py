"""Training of one LoRA adapter on the samples of one pool entry, with transformers' Trainer and PEFT.

The loss counts the answer's tokens only. The adapters of the bundled miniature and a user's own adapters are both
trained here; `scripts/train_loras.py` loops over a pool and resumes.
"""

from __future__ import annotations

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
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lora_retriever.data.rows import Sample
from lora_retriever.files import write_json
from lora_retriever.generation.examples import MAX_ANSWER_TOKENS, LeftPadding, encode_example
from lora_retriever.generation.generator import vocabulary_of
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.generation.special_tokens import pad_token_id

RECORD_FILE = "training.json"


class TrainingOptions(BaseModel):
    """How an adapter is trained. Rank and alpha are the paper's; the paper publishes no other option."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(6, ge=1)
    alpha: float = Field(12, gt=0)
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = Field(0.05, ge=0, lt=1)
    epochs: float = Field(5, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    batch_size: int = Field(4, ge=1)
    max_tokens: int = Field(512, ge=1)
    max_answer_tokens: int = Field(MAX_ANSWER_TOKENS, ge=1)
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
            train_dataset=[_encoded(tokenizer, sample, options) for sample in samples],
            eval_dataset=[_encoded(tokenizer, sample, options) for sample in validation],
            data_collator=LeftPadding(pad_token_id(tokenizer, vocabulary_of(base))),
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


def _encoded(tokenizer: PreTrainedTokenizerBase, sample: Sample, options: TrainingOptions) -> dict[str, list[int]]:
    return encode_example(tokenizer, sample, options.template, options.max_tokens, options.max_answer_tokens)
