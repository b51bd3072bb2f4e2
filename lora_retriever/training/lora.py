"""The common parts of trainings of adapters: options, the new adapter, the loop by transformers' Trainer, checks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from lora_retriever.errors import UserError
from lora_retriever.generation.examples import MAX_ANSWER_TOKENS
from lora_retriever.generation.prompt import ALPACA, CHAT, check_system
from lora_retriever.training.curve import Step, StepCallback
from lora_retriever.training.losses import LossName

RECORD_FILE = "training.json"
PACKAGES = ("torch", "transformers", "peft")
"""The packages whose versions a record tells."""


class TrainingOptions(BaseModel):
    """The options of an adapter's training. Rank and alpha are the paper's; the paper publishes no other option.

    `procedure` says to which questions the samples teach the answers. With `detect`, the name of a loss, a detection
    head is trained in place of answers; `pi` and `missing` are options of that loss (`training.losses`). A record of an
    earlier version, which lacks an option, was made with the option's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    system: str | None = None
    seed: int = 0
    procedure: str = "plain"
    detect: LossName | None = None
    pi: float = Field(0.04, gt=0)
    missing: float = Field(0.05, ge=0)

    @field_validator("system")
    @classmethod
    def _for_chat(cls, system: str | None, info: ValidationInfo) -> str | None:
        return check_system(system, info.data.get("template", CHAT))


def new_lora(base: PreTrainedModel, options: TrainingOptions) -> PeftModel:
    """The base with a new adapter. The caller removes the adapter again with `unload`.

    Raises:
        UserError: the base has no module of a name in `targets`.
    """
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # PEFT annotates int, and takes any number
        target_modules=list(options.targets),
        lora_dropout=options.dropout,
        task_type="SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        model: PeftModel = get_peft_model(base, config)
    except ValueError as error:  # no module of these names
        raise _no_module(base, options.targets) from error
    return model


def _no_module(base: PreTrainedModel, targets: Sequence[str]) -> UserError:
    """The error of a base without a module of these names. The message lists the names of its linear modules."""
    head = base.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    names = {name.rpartition(".")[2] for name, at in base.named_modules() if isinstance(at, linear) and at is not head}
    return UserError(
        f"the base has no module of the names {', '.join(targets)}; its linear modules are {', '.join(sorted(names))}: "
        "choose some with --targets"
    )


def run_trainer(
    model: torch.nn.Module,
    options: TrainingOptions,
    device: torch.device,
    examples: Sequence[Any],
    together: Callable[[list[Any]], dict[str, Any]],
    on_step: Callable[[Step], None] | None,
    held_out: Sequence[Any] = (),
    **more: Any,
) -> TrainerState:
    """Train by transformers' Trainer on one device. Nothing is saved. Returns the state with the log of all steps.

    Args:
        together: makes a batch of examples.
        on_step: called after every step.
        held_out: examples whose loss is logged after every epoch.
        more: further arguments of the Trainer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            lr_scheduler_type="linear",
            seed=options.seed,
            eval_strategy="epoch" if held_out else "no",
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=device.type == "cpu",
            **more,
        )
        # Without this the trainer would divide every batch among all GPUs, and make other batches than on one GPU.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = Trainer(
            model=model, args=arguments, train_dataset=examples, eval_dataset=held_out or None, data_collator=together
        )
        trainer.remove_callback(PrinterCallback)  # the losses go into the record
        if on_step is not None:
            trainer.add_callback(StepCallback(on_step))
        trainer.train()
    return trainer.state


def check_trained(name: str, trained: Iterable[Tensor], advice: str) -> None:
    """Check that trained weights are finite numbers.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in trained):
        raise UserError(f"{name}: the training gave NaN or infinite weights; {advice}")


def trained_parameters(model: torch.nn.Module) -> list[Tensor]:
    """The parameters of a model that a training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save_lora(model: PeftModel, folder: Path) -> None:
    """Write the adapter of a model into a folder."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def versions() -> dict[str, str]:
    """The versions of the packages that train."""
    return {package: version(package) for package in PACKAGES}
