"""Training of one LoRA adapter on the samples of one pool entry, with transformers' Trainer and PEFT.

The loss counts the answer's tokens only. The adapters of the bundled miniature and a user's own adapters are trained by
this module. `pool` trains the adapters of a whole pool, and resumes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import write_json
from lora_retriever.generation.examples import MAX_ANSWER_TOKENS, LeftPadding, check_examples, encode_example
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.limits import vocabulary_of
from lora_retriever.generation.prompt import ALPACA, CHAT, check_system, template_of
from lora_retriever.generation.special_tokens import pad_token_id
from lora_retriever.training.curve import Step, StepCallback, epoch_losses, write_curve
from lora_retriever.training.losses import LossName

RECORD_FILE = "training.json"


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


def train_adapter(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: TrainingOptions,
    out: Path,
    validation: Sequence[Sample] = (),
    initial: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> dict[str, Any]:
    """Train one LoRA. Write the LoRA, the record and the curve of its training to the folder `out` in one atomic step.

    Args:
        base: the base model, which is frozen and comes back unchanged. The adapter of a 16-bit base is float32.
        samples: the examples trained on.
        validation: examples whose loss is recorded after every epoch. The adapter is not trained on them.
        initial: folder of a LoRA of the same shape, from which the training starts. None: PEFT's initialisation.
        on_step: called after every step.

    Returns:
        The record: options, losses per epoch, seconds, versions.

    Raises:
        UserError: a sample has a token that the base lacks, the template does not fit into `max_tokens`, the base has
            no module of a name in `targets`, or the trained weights are not finite numbers.
    """
    examples, heldout = (_encoded(tokenizer, chosen, options, vocabulary_of(base)) for chosen in (samples, validation))
    set_seed(options.seed)
    started = time.perf_counter()
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # PEFT annotates int, and takes any number
        target_modules=list(options.targets),
        lora_dropout=options.dropout,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base, config)
    except ValueError as error:  # no module of these names
        raise no_module_of_targets(base, options.targets) from error
    if initial is not None:
        set_peft_model_state_dict(model, load_file(initial / SAFETENSORS_WEIGHTS_NAME))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
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
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            include_num_input_tokens_seen="non_padding",
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=base.device.type == "cpu",
        )
        # Without this the trainer would divide every batch among all GPUs, and make other batches than on one GPU.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=examples,
            eval_dataset=heldout,
            data_collator=LeftPadding(pad_token_id(tokenizer, vocabulary_of(base))),
        )
        trainer.remove_callback(PrinterCallback)  # the losses go into the record
        if on_step is not None:
            trainer.add_callback(StepCallback(on_step))
        with contiguous_head(base):
            trainer.train()
    record = {
        "options": options.model_dump(mode="json"),
        "samples": len(samples),
        "losses": epoch_losses(trainer.state.log_history),
        "validation_losses": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "steps": trainer.state.global_step,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        model.unload()
        raise UserError(
            f"{out.name}: the training gave NaN or infinite weights; lower the learning rate ({options.learning_rate})"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as unfinished:
        finished = Path(unfinished) / out.name
        model.save_pretrained(str(finished))
        (finished / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_json(finished / RECORD_FILE, record)
        write_curve(trainer.state.log_history, finished)
        finished.rename(out)
    model.unload()
    return record


def no_module_of_targets(base: PreTrainedModel, targets: Sequence[str]) -> UserError:
    """The error of a base without a module of these names. The message lists the names of its linear modules."""
    head = base.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    names = {name.rpartition(".")[2] for name, at in base.named_modules() if isinstance(at, linear) and at is not head}
    return UserError(
        f"the base has no module of the names {', '.join(targets)}; its linear modules are {', '.join(sorted(names))}: "
        "choose some with --targets"
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], options: TrainingOptions, vocabulary: int
) -> list[dict[str, list[int]]]:
    """The examples of samples. Raises `UserError` if the template is too long or a token is not in the vocabulary."""
    limits = options.max_tokens, options.max_answer_tokens
    template = template_of(tokenizer, options.template, options.system)
    try:
        examples = [encode_example(tokenizer, sample, template, *limits) for sample in samples]
    except ValueError as error:
        raise UserError(f"max_tokens is too small: {error}") from error
    check_examples(examples, samples, vocabulary)
    return examples
