"""Training of one adapter for each entry of a pool, adapter by adapter: a stopped training goes on where it was.

An adapter's folder appears only when the adapter is complete, and an adapter whose folder exists is not trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.data.rows import PoolEntry, Sample
from lora_retriever.data.triples import is_triple
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich, quoted
from lora_retriever.experiment.checks import alike_names
from lora_retriever.files import safe_name
from lora_retriever.procedures import find_procedure
from lora_retriever.progress import Bar, progress_bar
from lora_retriever.training.adapter import train_adapter
from lora_retriever.training.curve import Step
from lora_retriever.training.detector import train_detector
from lora_retriever.training.lora import RECORD_FILE, TrainingOptions

CUT = {"cut_prompts": "prompts", "cut_answers": "answers"}
"""The counts of a record that say how many texts were cut, and the words for these texts."""


def chosen_entries(
    pool: Sequence[PoolEntry], names: Sequence[str] | None, validation: int = 0, detects: bool = False
) -> list[PoolEntry]:
    """The entries of these names, in the order of `names`. None: all entries.

    Args:
        validation: number of samples of each entry that are held out.
        detects: whether detection heads are trained, whose samples have triples as their targets.

    Raises:
        UserError: the pool lacks a name, two names look alike, a name leads out of the folder of adapters, no sample of
            an entry is left to train on, or the target of a sample is no list of triples.
    """
    entries = {entry.model_name: entry for entry in pool}
    if unknown := [name for name in names or () if name not in entries]:
        raise UserError(f"the pool has no entry {', '.join(unknown)}")
    chosen = [entries[name] for name in dict.fromkeys(names or entries)]
    for alike in alike_names([("entry", entry.model_name) for entry in chosen]):
        spellings = " and ".join(ascii(name) for _, name in alike)
        raise UserError(f"the pool's names {spellings} look alike, so no run could use both adapters; rename one")
    for entry in chosen:
        safe_name(entry.model_name, "adapter", may_have_folders=True)  # an adapter's folder has this name
        if len(entry.sample) <= validation:
            raise UserError(
                f"{entry.model_name}: {validation} samples held out for validation leave none of its "
                f"{len(entry.sample)} to train on"
            )
        if detects:
            _check_triples(entry)
    return chosen


def _check_triples(entry: PoolEntry) -> None:
    for number, sample in enumerate(entry.sample, start=1):
        for line in sample.target.splitlines():
            if line.strip() and not is_triple(line):
                raise UserError(
                    f"{entry.model_name}: sample {number}: the target has the line {quoted(line)}, which is no triple; "
                    "a detection head is trained on targets with one triple a line: relation | subject | object"
                )


def made_of(base: str, dtype: str, entry: PoolEntry, validation: int = 0) -> dict[str, str]:
    """The source of a training, for its record: base, dtype, and the SHA-256 of the samples and their division.

    Args:
        base: the SHA-256 of the base model.
        validation: number of samples that are held out.
    """
    kept = len(entry.sample) - validation
    parts = [[sample.model_dump(mode="json") for sample in part] for part in (entry.sample[:kept], entry.sample[kept:])]
    return {"base": base, "dtype": dtype, "samples": hashlib.sha256(json.dumps(parts).encode()).hexdigest()}


def is_trained(folder: Path, options: TrainingOptions, source: Mapping[str, str]) -> bool:
    """Whether the adapter exists and was trained with these options from this source.

    Args:
        source: the source of the training (`made_of`). A record of an earlier version does not name the source.

    Raises:
        UserError: the adapter was trained with other options or from another source, or its record cannot be read.
    """
    if not folder.exists():
        return False
    path = folder / RECORD_FILE
    if not path.exists():
        raise UserError(f"{folder} exists and was not trained here; move the folder, or choose another --out")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        made_with: dict[str, Any] = dict(record["options"])
        recorded: dict[str, Any] = dict(record.get("made_of", {}))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: is no record of a training; delete the folder {folder} to train anew") from error
    wanted = options.model_dump(mode="json")
    before = {key: made_with.get(key, field.default) for key, field in TrainingOptions.model_fields.items()}
    differing = [f"{key} {before[key]} (now {value})" for key, value in wanted.items() if before[key] != value]
    changed = [name for name, value in source.items() if recorded.get(name, value) != value]
    differing += [{"base": "another base", "samples": "other samples"}.get(name, f"another {name}") for name in changed]
    if differing:
        raise UserError(f"{folder} was trained with {', '.join(differing)}; choose another --out, or delete the folder")
    return True


def train_pool(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[PoolEntry],
    options: TrainingOptions,
    out: Path,
    validation: int,
    console: Console,
    sources: Mapping[str, Mapping[str, str]],
) -> None:
    """Train an adapter for each entry, into the sub-folder of `out` with the entry's name.

    Args:
        sources: the source of each adapter's training (`made_of`), by the entry's name.
        validation: number of samples that are held out, at the end of each entry. Their loss is recorded.
        console: where progress goes: steps, loss, tokens a second and time left of the adapter that is being trained,
            and the adapters done.

    Raises:
        UserError: an adapter cannot be trained.
    """
    with progress_bar(console, "adapters", len(entries), text=f"0/{len(entries)}") as adapters:
        for number, entry in enumerate(entries):
            kept = len(entry.sample) - validation
            with progress_bar(console, entry.model_name, 1) as bar:

                def show(step: Step, bar: Bar = bar, done: int = number) -> None:
                    share = step.number / step.steps
                    speed = f"{step.tokens_per_second:,.0f} tokens/s"
                    bar.move_to(share, f"step {step.number}/{step.steps}, loss {step.loss:.3f}, {speed}")
                    adapters.move_to(done + share, f"{done}/{len(entries)}")

                train = train_adapter if options.detect is None else train_detector
                samples, held_out = (
                    part if options.detect else taught(part, options.procedure)
                    for part in (entry.sample[:kept], entry.sample[kept:])
                )
                place = out / entry.model_name
                source = sources[entry.model_name]
                record = train(base, tokenizer, samples, options, place, held_out, on_step=show, source=source)
            console.print(for_rich(f"{entry.model_name}: {summary(record)}"), soft_wrap=True)
        adapters.move_to(len(entries), f"{len(entries)}/{len(entries)}")


def taught(samples: Sequence[Sample], procedure: str) -> list[Sample]:
    """The examples that teach an adapter the answers that a procedure asks for. Plain: the samples themselves.

    Raises:
        UserError: the procedure is unknown.
    """
    examples = find_procedure(procedure).examples
    return [*samples] if examples is None else [example for sample in samples for example in examples(sample)]


def summary(record: dict[str, Any]) -> str:
    """One line about the training of one adapter."""
    losses = " → ".join(f"{loss:.3f}" for loss in (record["losses"][0], record["losses"][-1]))
    validation = " ".join(f"{loss:.3f}" for loss in record["validation_losses"])
    heldout = f", validation {validation}" if validation else ""
    cut = [f"{record[key]} {what}" for key, what in CUT.items() if record.get(key)]
    lost = f"; of {record['samples']} examples, {' and '.join(cut)} were too long and were cut" if cut else ""
    return f"loss {losses}{heldout}, {record['steps']} steps, {record['seconds']} s{lost}"
