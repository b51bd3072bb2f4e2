"""Contrastive training of the retriever's encoder on some of a pool's tasks, measured on the other tasks.

The training is the paper's: two samples of one task are a pair, samples of different tasks are negatives, under a
softmax with a temperature. The paper does not publish learning rate, temperature, batch size and epochs. Loss, batches
and loop come from sentence-transformers. This module chooses tasks, makes pairs, and writes record and comparison.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, set_seed

from lora_retriever.analysis.retrieval.evaluation import CUTS
from lora_retriever.analysis.retrieval.rankings import Ranking, encode_data, rank
from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows
from lora_retriever.data.sources import DataSource, hash_source
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import INSTRUCTION
from lora_retriever.files import hash_path, read_bytes, write_json
from lora_retriever.resampling import over_tasks, permutation_test
from lora_retriever.retrieval.encoders import Layout, SentenceEncoder, load_encoder
from lora_retriever.retrieval.encoding import encode_samples
from lora_retriever.retrieval.pool import AdapterPool
from lora_retriever.retrieval.scorers import SCORERS, Samples
from lora_retriever.running.run_file import differences

RECORD_FILE = "training.json"
MEASURED = ("cosine", "mean_ip")

Ranks = NDArray[np.float64]


class RetrieverOptions(BaseModel):
    """The options of an encoder's training.

    Share, samples and instruction are the paper's; the paper publishes no other option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(0.4, gt=0, le=1)
    tasks: tuple[str, ...] | None = None  # names of the tasks; None: a drawn share of all tasks
    validation: int = Field(0, ge=0)  # number of chosen tasks that are held out of training
    samples: int = Field(20, ge=2)
    instruction: str = INSTRUCTION
    temperature: float = Field(0.05, gt=0)
    epochs: int = Field(2, ge=1)  # every sample is an anchor once in each epoch
    batch_size: int = Field(32, ge=2)  # pairs, each of another task
    learning_rate: float = Field(5e-5, gt=0)
    layers: int | None = Field(None, ge=0)  # number of topmost layers trained; None: all, 0: only an added linear layer
    max_tokens: int | None = Field(None, ge=1)  # longer texts are cut in training; None: the encoder's own limit
    seed: int = 0


@dataclass(frozen=True)
class TaskChoice:
    """The tasks of a pool that are trained on, the tasks held out to choose options by, and all other tasks."""

    seen: list[str]
    validation: list[str]
    unseen: list[str]


def choose_tasks(pool: Sequence[PoolEntry], options: RetrieverOptions) -> TaskChoice:
    """The tasks named in the options, or a share of the pool's tasks drawn with the seed. The last of these tasks are
    held out.

    Raises:
        UserError: the options name a task that is not in the pool, or fewer than two tasks are left to train on.
    """
    names = [entry.model_name for entry in pool]
    unknown = [name for name in options.tasks or () if name not in names]
    if unknown:
        raise UserError(f"the pool has no task {', '.join(unknown)} to train on")
    drawn = random.Random(options.seed).sample(names, round(options.share * len(names)))
    chosen = list(dict.fromkeys(options.tasks or drawn))
    seen = chosen[: max(len(chosen) - options.validation, 0)]
    if len(seen) < 2:
        raise UserError(
            f"{len(chosen)} of {len(names)} tasks are chosen and {options.validation} of them held out: at least two "
            "must be left, as negatives of each other. Choose a larger share, or hold out fewer"
        )
    return TaskChoice(seen, chosen[len(seen) :], [name for name in names if name not in chosen])


def training_pairs(pool: Sequence[PoolEntry], options: RetrieverOptions) -> Dataset:
    """The pairs (anchor, positive) for all epochs, in one data set. Both samples of a pair are of the task `label`.

    A sample gets another partner in each epoch, if the task has enough samples.

    Raises:
        UserError: a task has a single sample.
    """
    draw = random.Random(options.seed)
    pairs = []
    for label, entry in enumerate(pool):
        texts = [sample.inputs.strip() for sample in entry.sample][: options.samples]
        if len(texts) < 2:
            raise UserError(f"task {entry.model_name} has one sample only: no pair can be made of it")
        draw.shuffle(texts)
        for epoch in range(options.epochs):
            shift = 1 + epoch % (len(texts) - 1)
            pairs += [
                {"anchor": text, "positive": texts[(place + shift) % len(texts)], "label": label}
                for place, text in enumerate(texts)
            ]
    return Dataset.from_list(pairs)


def train_retriever(
    base: Path,
    pool_file: Path,
    options: RetrieverOptions,
    out: Path,
    layout: Layout = "auto",
    device: str = "cpu",
) -> dict[str, Any]:
    """Train an encoder. Write the encoder and the record of its training to the folder `out` in one atomic step.

    An interrupted training goes on from the end of its last epoch, which the folder `OUT.partial` holds. If `out`
    exists already, nothing is done.

    Returns:
        The record: the choice of tasks, options, hashes, losses, validation, seconds, versions.

    Raises:
        UserError: `out` or `OUT.partial` was made with other options or files, or there are too few tasks.
    """
    configuration = {
        "base_hash": hash_path(base),
        "layout": layout,
        "pool_hash": hash_source(DataSource.of(pool_file)),
        "options": options.model_dump(mode="json"),
    }
    partial = out.with_name(f"{out.name}.partial")
    finished, begun = _made_before(out, configuration), _made_before(partial, configuration)
    if finished is not None:
        return finished
    pool = read_pool(pool_file)
    tasks = choose_tasks(pool, options)
    pairs = training_pairs([entry for entry in pool if entry.model_name in tasks.seen], options)
    encoder = load_encoder(base, layout, options.instruction, device=device)
    model = encoder.model = trainable(encoder.model, options)
    if begun is None:
        write_json(partial / RECORD_FILE, {"configuration": configuration})

    started = time.perf_counter()
    record: dict[str, Any] = {
        "configuration": configuration,
        "base": str(base),
        "pool": str(pool_file),
        "tasks": asdict(tasks),
    }
    if tasks.validation:
        record["validation"] = {"before": held_out_shares(encoder, pool, tasks.validation)}
    trainer = contrastive_trainer(model, pairs, options, partial)
    own_limit = model.max_seq_length
    model.max_seq_length = options.max_tokens or own_limit
    trainer.train(resume_from_checkpoint=_last_checkpoint(partial))
    model.max_seq_length = own_limit
    if tasks.validation:
        record["validation"]["after"] = held_out_shares(encoder, pool, tasks.validation)
    record |= {
        "steps": trainer.state.global_step,
        "losses": [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry],
        "seconds": round(time.perf_counter() - started, 1),  # since the last start
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers", "datasets")},
    }
    trained = partial / "trained"
    model.save_pretrained(str(trained), create_model_card=False)
    write_json(trained / RECORD_FILE, record)
    trained.rename(out)
    shutil.rmtree(partial)
    return record


def trainable(model: SentenceTransformer, options: RetrieverOptions) -> SentenceTransformer:
    """The model in which only the parameters that the options name are trained."""
    if options.layers is None:
        return model
    model.requires_grad_(False)
    if options.layers == 0:
        dim = model.get_embedding_dimension()
        assert dim is not None, "an encoder without an embedding dimension"
        # y = x + Wx with W = 0: at the beginning, y is the model's own vector
        added = Dense(
            dim, dim, bias=False, activation_function=None, init_weight=torch.zeros(dim, dim), use_residual=True
        )
        modules = list(model)
        modules.insert(len(modules) - isinstance(modules[-1], Normalize), added)
        return SentenceTransformer(modules=modules, device=str(model.device))
    transformer = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    depth = transformer.config.num_hidden_layers
    if options.layers > depth:
        raise UserError(f"the encoder has {depth} layers: the topmost {options.layers} cannot be trained")
    stack = next(part for part in transformer.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
    for part in (*stack[-options.layers :], *list(model)[1:]):
        part.requires_grad_(True)
    return model


def contrastive_trainer(
    model: SentenceTransformer, pairs: Dataset, options: RetrieverOptions, scratch: Path
) -> SentenceTransformerTrainer:
    """sentence-transformers' trainer, which saves its state to `scratch` at the end of each epoch."""
    set_seed(options.seed)
    batch_size = min(options.batch_size, len(set(pairs["label"])))
    steps_per_epoch = max(len(pairs) // batch_size // options.epochs, 1)
    # Every text of another task in the batch is a negative, for anchors and for positives (Li et al., 2023).
    loss = MultipleNegativesRankingLoss(
        model,
        scale=1 / options.temperature,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(scratch),
            num_train_epochs=1,  # the pairs of all epochs are one data set
            per_device_train_batch_size=batch_size,
            batch_sampler=one_pair_a_task,
            dataloader_drop_last=True,
            prompts=options.instruction or None,
            learning_rate=options.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,  # share of all steps
            seed=options.seed,
            save_strategy="steps",
            save_steps=steps_per_epoch,
            save_total_limit=1,
            logging_strategy="steps",
            logging_steps=steps_per_epoch,
            disable_tqdm=not sys.stderr.isatty(),
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=model.device.type == "cpu",
        ),
        train_dataset=pairs,
        loss=loss,
    )
    trainer.remove_callback(PrinterCallback)  # the losses go into the record
    return trainer


def one_pair_a_task(
    dataset: Dataset, batch_size: int, drop_last: bool, generator: torch.Generator, seed: int, **_: Any
) -> NoDuplicatesBatchSampler:
    """Batches in which no task and no text occurs twice: a text would be a negative of itself.

    sentence-transformers' setting for this sampler, `no_duplicates`, does not look at the labels.
    """
    return NoDuplicatesBatchSampler(dataset, batch_size, drop_last, generator=generator, seed=seed)


def evaluate_retriever(base: Path, out: Path, pool_file: Path, rows_file: Path, device: str = "cpu") -> dict[str, Any]:
    """Retrieval over the whole pool before and after training, for rows of seen and of unseen tasks.

    The result is also written to the record.

    Returns:
        `rows`, the number of rows of each group; `before` and `after`, {scorer: {group: {top1, top3, top5, top8,
        mrr}}}, shares in percent; and `unseen_top1`, {scorer: {points, p_value, over_tasks}}, the change on unseen
        tasks with its p-value and its interval.
    """
    record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
    rows_hash = hash_source(DataSource.of(rows_file))
    if record.get("evaluation", {}).get("rows_hash") == rows_hash:
        return record["evaluation"]
    pool, rows = read_pool(pool_file), read_rows(rows_file)
    layout, instruction = record["configuration"]["layout"], record["configuration"]["options"]["instruction"]
    before = own_ranks(load_encoder(base, layout, instruction, device=device), pool, rows)
    after = own_ranks(load_encoder(out, "auto", instruction, device=device), pool, rows)
    groups = {
        **{name: np.array([row.task in record["tasks"][name] for row in rows]) for name in record["tasks"]},
        "all": np.ones(len(rows), dtype=bool),
    }
    groups = {name: member for name, member in groups.items() if member.any()}

    def shares_by_group(ranks: dict[str, Ranks]) -> dict[str, Any]:
        return {
            scorer: {name: shares(found[member]) for name, member in groups.items()} for scorer, found in ranks.items()
        }

    record["evaluation"] = {
        "inputs": str(rows_file),
        "rows_hash": rows_hash,
        "rows": {name: int(member.sum()) for name, member in groups.items()},
        "before": shares_by_group(before),
        "after": shares_by_group(after),
        "unseen_top1": {
            scorer: top1_change(rows, before[scorer], after[scorer], groups["unseen"]) for scorer in MEASURED
        }
        if "unseen" in groups
        else {},
    }
    write_json(out / RECORD_FILE, record)
    return record["evaluation"]


def own_ranks(encoder: SentenceEncoder, pool: Sequence[PoolEntry], rows: Sequence[Row]) -> dict[str, Ranks]:
    """For each scorer, the rank (from 1) of every row's own adapter [rows]; infinite if the pool lacks the adapter."""
    data = encode_data(encoder, pool, rows)
    return {scorer: rank(data, scorer).ranks for scorer in MEASURED}


def held_out_shares(encoder: SentenceEncoder, pool: Sequence[PoolEntry], tasks: Sequence[str]) -> dict[str, float]:
    """Shares of the samples of `tasks` that find their own adapter, by cosine. A sample is left out of its own task.

    Raises:
        UserError: no task has two samples.
    """
    adapters = AdapterPool()
    texts = [[sample.inputs for sample in entry.sample] for entry in pool]
    for entry, embeddings in zip(pool, encode_samples(encoder, texts), strict=True):
        adapters.add(entry.model_name, Samples(embeddings))
    held_out = SCORERS["cosine"].fit(adapters).held_out()
    if held_out is None:
        raise UserError("no task of the pool has two samples, so no sample can be left out to validate the encoder")
    chosen = np.isin(held_out.own, [adapters.names.index(task) for task in tasks])
    order = np.argsort(-held_out.scores[chosen], axis=1, kind="stable")  # [samples, adapters]
    return shares(Ranking(order, held_out.own[chosen], None).ranks)


def shares(ranks: Ranks) -> dict[str, float]:
    """Percent of ranks up to k, and the mean reciprocal rank, which varies less on few rows."""
    found = {f"top{k}": round(100 * float((ranks <= k).mean()), 2) for k in CUTS}
    return {**found, "mrr": round(100 * float((1 / ranks).mean()), 2)}


def top1_change(rows: Sequence[Row], before: Ranks, after: Ranks, members: NDArray[np.bool_]) -> dict[str, Any]:
    """Change of the top-1 share over some rows: points, p of the paired permutation test, interval over tasks."""
    change = ((after == 1).astype(float) - (before == 1))[members]  # [rows], 1: found now, −1: lost
    tasks = np.array([row.task for row in rows])[members]
    by_task = [change[tasks == task].mean() for task in dict.fromkeys(tasks)]
    p_value = permutation_test(len(change), lambda swapped: ((1 - 2 * swapped) @ change)[..., None])
    return {
        "points": round(100 * float(change.mean()), 2),
        "p_value": round(float(p_value[0]), 4),
        "over_tasks": [round(100 * float(end), 2) for end in over_tasks(by_task)],
    }


def _last_checkpoint(partial: Path) -> str | None:
    """The newest complete checkpoint. The trainer writes the state file last."""
    states = sorted(partial.glob("checkpoint-*/trainer_state.json"), key=lambda state: state.stat().st_mtime_ns)
    return str(states[-1].parent) if states else None


def _made_before(folder: Path, configuration: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a folder that this training made or began with this configuration. None: there is no folder.

    Raises:
        UserError: the folder was made with another configuration, or by something else.
    """
    if not folder.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(read_bytes(folder / RECORD_FILE))
        differing = differences(record["configuration"], configuration)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{folder} exists and was not made by this training; move the folder, or choose another --out"
        ) from error
    if differing:
        raise UserError(
            f"{folder} was trained with other settings: {'; '.join(differing)}. "
            "Choose another --out, or delete the folder"
        )
    return record
