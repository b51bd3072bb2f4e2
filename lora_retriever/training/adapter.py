"""Training of one LoRA adapter on the samples of one pool entry, with transformers' Trainer and PEFT.

The loss counts the answer's tokens only. The adapters of the bundled miniature and a user's own adapters are trained by
this module. `pool` trains the adapters of a whole pool, and resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import new_folder, write_json
from lora_retriever.generation.examples import answered_example, check_examples, encode_answer, padding_of
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.limits import Limits, limits_of
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


def train_adapter(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: TrainingOptions,
    out: Path,
    validation: Sequence[Sample] = (),
    initial: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
    source: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train one adapter.

    Write the adapter, the record and the curve of its training to the folder `out` in one atomic step.
    Args:
        base: the base model, which is frozen and comes back unchanged. The adapter of a 16-bit base is float32.
        samples: the examples trained on.
        validation: examples whose loss is recorded after every epoch. The adapter is not trained on them.
        initial: folder of an adapter of the same shape, from which the training starts. None: PEFT's initialisation.
        on_step: called after every step.
        source: the data and the base of the training, for the record (`pool.made_of`). None: the record does not say.

    Returns:
        The record: options, how many prompts and answers of the samples were cut, losses per epoch, seconds, versions.

    Raises:
        UserError: a sample has a token that the base lacks, or more tokens than the base has positions, the template
            does not fit into `max_tokens`, the base has no module of a name in `targets`, or the trained weights are
            not finite numbers.
    """
    limits = limits_of(base)
    (examples, cut), (held_out, _) = (_encoded(tokenizer, chosen, options, limits) for chosen in (samples, validation))
    set_seed(options.seed)
    started = time.perf_counter()
    model = new_lora(base, options)
    try:
        if initial is not None:
            set_peft_model_state_dict(model, load_file(initial / SAFETENSORS_WEIGHTS_NAME))
        with contiguous_head(base):
            state = run_trainer(
                model,
                options,
                base.device,
                examples,
                padding_of(base, tokenizer, pad_token_id(tokenizer, limits.vocabulary)),
                on_step,
                held_out,
                train_sampling_strategy="group_by_length",
                include_num_input_tokens_seen="non_padding",
            )
        check_trained(out.name, trained_parameters(model), f"lower the learning rate ({options.learning_rate})")
        record = {
            "options": options.model_dump(mode="json"),
            **({} if source is None else {"made_of": dict(source)}),
            "samples": len(samples),
            **cut,
            "losses": epoch_losses(state.log_history),
            "validation_losses": [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry],
            "steps": state.global_step,
            "seconds": round(time.perf_counter() - started, 1),
            "versions": versions(),
        }
        with new_folder(out) as folder:
            save_lora(model, folder)
            write_json(folder / RECORD_FILE, record)
            write_curve(state.log_history, folder)
    finally:
        model.unload()
    return record


def _encoded(
    tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], options: TrainingOptions, limits: Limits
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """The examples of samples, and how many prompts and answers were cut because they were too long.

    Raises:
        UserError: the template is too long, or the base cannot read an example.
    """
    template = template_of(tokenizer, options.template, options.system)
    try:
        prompts = [encode_prompt(tokenizer, template, sample.inputs, options.max_tokens) for sample in samples]
    except ValueError as error:
        raise UserError(f"max_tokens is too small: {error}") from error
    answers = [encode_answer(tokenizer, sample) for sample in samples]
    longest = options.max_answer_tokens
    examples = [
        answered_example(prompt.token_ids, answer[:longest]) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    check_examples(examples, samples, limits)
    cut_prompts = sum(prompt.truncated_tokens > 0 for prompt in prompts)
    return examples, {"cut_prompts": cut_prompts, "cut_answers": sum(len(answer) > longest for answer in answers)}
