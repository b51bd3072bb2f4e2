"""The plan of a run: the prompt and the composition of each row, checked before the first token is made."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_retriever.backends import BACKENDS
from lora_retriever.data.rows import Row, shortened
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import BALANCED, EncoderSection, Profile
from lora_retriever.files import safe_name
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.prompt import Prompt
from lora_retriever.methods import Method
from lora_retriever.methods.context import LEARNED, Context, Resources
from lora_retriever.own_objects import is_own, source_hash
from lora_retriever.procedures import PLAIN, procedures_of
from lora_retriever.retrieval.scorers import SCORERS
from lora_retriever.running.answer_cache import answer_key
from lora_retriever.running.run_file import RunFile
from lora_retriever.running.sweep import Variant

if TYPE_CHECKING:
    from peft_composition import Gate

RUNS_NAMED = 8
"""Maximum number of runs that one message names."""
LONGEST_NAME = 180
"""Maximum length of a run's name, in bytes. The names of its files are longer."""


@dataclass(frozen=True)
class PlannedRow:
    """A row with everything that decides the row's answer."""

    row: Row
    prompt: Prompt
    composition: Composition


def device_identity(device: str) -> str:
    """A device in a run's configuration, with the names of the GPUs, because kernels and rounding differ."""
    if not device.startswith("cuda") and device != BALANCED:
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    if device == BALANCED:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{device}: {', '.join(names)}"
    return f"{device}: {torch.cuda.get_device_name(device)}"


def configuration(profile: Profile, benchmark: Benchmark, method: Method) -> dict[str, Any]:
    """Everything that decides a method's answers, files by their hashes. Values that do not concern the method are left
    out.

    A setting that was added to the project later appears only where a profile sets the setting. So older results
    folders stay usable.
    """
    k, temperature = profile.retrieval.k, profile.retrieval.temperature
    used = {
        "method": method.describe(),
        "rows": benchmark.hashes["rows"],
        "limit_per_task": benchmark.limit,
        "base": benchmark.hashes["base"],
        "generation": profile.generation.recorded(),
        "dtype": profile.dtype,
        "device": device_identity(profile.torch_device),
        "threads": profile.threads,
    }
    used |= {part: benchmark.hashes[part] for part in ("adapters", "pool") if part in method.reads}
    if profile.encoder is not None and method.needs_encoder(profile):
        used |= {"encoder": _encoder_used(profile.encoder, benchmark)}
    if "scorer" in method.settings:
        used |= {"scorer": profile.retrieval.scorer}
        if is_own(profile.retrieval.scorer):
            used |= {"scorer_source": source_hash(profile.retrieval.scorer)}
    if wanted := method.adapters_needed(k):
        used |= {"k": wanted}
    if temperature is not None and method.depends_on("temperature", k):
        used |= {"temperature": temperature}
        # Earlier versions always made weights of the scores, and wrote no field `weights`.
        if profile.scorer.weights != "cosine":
            used |= {"weights": profile.scorer.weights}
    if profile.generation.shots:
        used |= {"pool": benchmark.hashes["pool"]}
    if profile.data.reading:
        used |= {"data": profile.data.reading}
    if used_procedures := recorded_procedures(profile, benchmark):
        used |= {"procedures": used_procedures}
    if profile.seed != 0:
        used |= {"seed": profile.seed}
    if profile.backend != "local":
        used |= {"backend": profile.backend}
    return used


def recorded_procedures(profile: Profile, benchmark: Benchmark) -> dict[str, Any]:
    """The procedures of the rows with their options, in the form of a configuration. Empty: all rows are plain.

    Raises:
        UserError: as for `procedures_of`.
    """
    found = procedures_of(profile, benchmark.rows)
    if found.keys() <= {PLAIN}:
        return {}
    recorded = {
        name: {"options": procedure.options, **({"source": source_hash(name)} if is_own(name) else {})}
        for name, procedure in found.items()
    }
    return {"of_rows": profile.procedure, **recorded}


def _encoder_used(encoder: EncoderSection, benchmark: Benchmark) -> dict[str, Any]:
    """The hash that decides the embeddings of a text: of the encoder's checkpoint, or of the source of a user's own
    encoder."""
    if encoder.is_own:
        return {"object": encoder.location, "source": benchmark.hashes["encoder"]}
    return {"hash": benchmark.hashes["encoder"], "layout": encoder.layout, "instruction": encoder.instruction}


def check_names(variants: Sequence[Variant]) -> None:
    """Check that the files of all runs lie in the results folder, and that no two runs share files on any file system.

    Raises:
        UserError: a name is unsafe, too long or hidden, or two names differ only by case or Unicode form.
    """
    seen: dict[str, str] = {}
    for variant in variants:
        name = safe_name(variant.name, "run")
        if name.startswith(".") or len(name.encode("utf-8")) > LONGEST_NAME:
            reason = "files that begin with a dot are hidden" if name.startswith(".") else "it is too long for a file"
            raise UserError(f"run {shortened(name)!r}: {reason}; give its method another name")
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(
                f"the runs {other!r} and {name!r} differ only by case or Unicode form, so on some file systems they "
                "would share their files; rename one of the two methods"
            )


def check_pool_size(variants: Sequence[Variant], benchmark: Benchmark) -> None:
    """Check that the pool has as many adapters as each variant gives a row.

    Raises:
        UserError: the pool has fewer.
    """
    for variant in variants:
        method, profile = variant.method, variant.profile
        available = len(benchmark.pool) - method.masked
        wanted = method.adapters_needed(profile.retrieval.k)
        if wanted > available:
            option = f"option k of {method.plain_name}"
            lower = "retrieval.k, or the sweep's k" if method.depends_on("k", wanted) else option
            raise UserError(
                f"profile {profile.name}: {variant.name} gives a row k = {wanted} adapters, but the pool "
                f"{profile.pool_path} leaves {available} to choose from; lower {lower}"
            )


def check_encoder(variants: Sequence[Variant]) -> bool:
    """Whether a method needs embeddings; then the profile must have an encoder.

    Raises:
        UserError: a method needs embeddings, and the profile has no encoder; or a user's own scorer cannot be loaded.
    """
    needing = [variant for variant in variants if variant.method.needs_encoder(variant.profile)]
    if not needing or needing[0].profile.encoder is not None:
        return bool(needing)
    always = [variant.name for variant in needing if "encoder" in variant.method.reads]
    by_scorer: dict[str, list[str]] = {}
    for variant in needing:
        if variant.name not in always:
            by_scorer.setdefault(variant.profile.retrieval.scorer, []).append(variant.name)
    reasons = [f"{_listed(names)} by the scorer {scorer}" for scorer, names in by_scorer.items()]
    reasons += [f"{_listed(always)} under every scorer"] if always else []
    of_texts = ", ".join(name for name, scorer in SCORERS.items() if not scorer.needs_embeddings)
    raise UserError(
        f"profile {needing[0].profile.name}: encoder: the field is missing, and embeddings are read: "
        f"{'; '.join(reasons)}. Add encoder: {{location: FOLDER_OR_HUB_ID}}"
        + (f", or set retrieval.scorer to a scorer that reads texts alone ({of_texts})" if by_scorer else "")
        + (", or name other methods" if always else "")
    )


def _listed(names: Sequence[str]) -> str:
    """Names in a message, of which at most `RUNS_NAMED` are shown."""
    more = len(names) - RUNS_NAMED
    return ", ".join(names[:RUNS_NAMED]) + (f" and {more} more" if more > 0 else "")


def detecting_procedures(profile: Profile, rows: Sequence[Row]) -> list[str]:
    """The procedures of the rows that use detection heads.

    Raises:
        UserError: as for `procedures_of`.
    """
    return [name for name, procedure in procedures_of(profile, rows).items() if procedure.detects]


def check_backend(variants: Sequence[Variant], rows: Sequence[Row]) -> None:
    """Check that the profile's backend serves the methods, the rows and the rows' procedures.

    Raises:
        UserError: a method weighs adapters by token or looks into the model, a row has options, or a procedure detects
            labels, and the backend has no model; or a procedure or an option of a procedure is unknown.
    """
    needing = [v.name for v in variants if v.method.gate is not None or "model" in v.method.reads]
    backend = variants[0].profile.backend
    detecting = [name for variant in variants for name in detecting_procedures(variant.profile, rows)]
    if detecting and not BACKENDS[backend].has_model:
        raise UserError(
            f"backend: {backend} serves checkpoints and has no detection heads, which the procedure {detecting[0]} "
            "needs; run it with backend: local"
        )
    with_options = next((row for row in rows if row.options), None)
    if with_options is not None and not BACKENDS[backend].has_model:
        raise UserError(
            f"backend: {backend} serves checkpoints and gives no likelihoods, which the metric {with_options.metric} "
            f"of row {with_options.id} needs; use backend: local or ray"
        )
    if needing and not BACKENDS[backend].has_model:
        raise UserError(
            f"backend: {backend} serves checkpoints: it can neither weigh adapters by token nor look into the model, "
            f"as {', '.join(needing)} need. Name the other methods with --only, and run these with backend: local"
        )


def planned(
    variant: Variant, run: RunFile, prompts: Sequence[Prompt], resources: Resources, keeps_learned: bool = False
) -> tuple[list[PlannedRow], Gate | None]:
    """The rows of a run with their compositions, and the method's gate, learned now if necessary.

    Args:
        keeps_learned: whether the learned folders in the run's record are used, though other code made these folders.

    Raises:
        UserError: the method cannot be run here, gives a row an adapter that the row must not have, or has learned
            something else since the run was begun.
    """
    method, rows = variant.method, resources.benchmark.rows
    recorded = run.recorded.get("learned", {})
    resources.learned.clear()
    resources.kept_learned = tuple(recorded) if keeps_learned else ()
    context = Context(resources, variant.profile, method.declaration)
    compositions, gate = method.compositions(context), method.fitted_gate(context)
    if run.has_answers and recorded != resources.learned:
        raise UserError(
            f"{run.path}: its rows so far were answered with what {method.name} had learned then; the folder "
            f"{resources.results / LEARNED} now holds something else. Remove the run's files to answer the run anew"
        )
    return [PlannedRow(*parts) for parts in zip(rows, prompts, compositions, strict=True)], gate


def lacking(planned: PlannedRow, configuration: Mapping[str, Any]) -> str | None:
    """Why a row cannot be answered: its composition has an adapter that the pool does not have. None: it can be."""
    absent = [name for name in planned.composition.weights if name not in configuration["adapters"]]
    return f"no adapter {absent[0]!r} in the pool" if absent else None


def group_alike(plan: Sequence[PlannedRow], configuration: Mapping[str, Any]) -> dict[str, list[PlannedRow]]:
    """The rows of a plan by the key of their answer. Rows of one key have the same answer, which is made once."""
    groups: dict[str, list[PlannedRow]] = {}
    for planned in plan:
        row, weights = planned.row, planned.composition.weights
        key = answer_key(configuration, row.inputs, weights, row.options, row.task)
        groups.setdefault(key, []).append(planned)
    return groups
