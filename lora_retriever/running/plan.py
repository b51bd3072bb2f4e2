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
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import safe_name
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.prompt import Prompt
from lora_retriever.methods import Method
from lora_retriever.methods.context import LEARNED, Context, Resources
from lora_retriever.running.answer_cache import answer_key
from lora_retriever.running.run_file import RunFile
from lora_retriever.running.sweep import Variant

if TYPE_CHECKING:
    from peft_composition import Gate

LONGEST_NAME = 180
"""Maximum length of a run's name, in bytes. The names of its files are longer."""


@dataclass(frozen=True)
class PlannedRow:
    """A row with all that decides its answer."""

    row: Row
    prompt: Prompt
    composition: Composition


def configuration(profile: Profile, benchmark: Benchmark, method: Method) -> dict[str, Any]:
    """Everything that decides a method's answers, files by their hashes. What does not concern the method is left out.

    A setting that was added to the project later appears only where a profile sets the setting. So older results
    folders stay usable.
    """
    k, temperature, tokens = profile.retrieval.k, profile.retrieval.temperature, profile.generation.batch_tokens
    used = {
        "method": method.describe(),
        "rows": benchmark.hashes["rows"],
        "limit_per_task": benchmark.limit,
        "base": benchmark.hashes["base"],
        "generation": profile.generation.model_dump(exclude={"batch_tokens"} if tokens is None else None),
        "dtype": profile.dtype,
        "device": profile.torch_device,
        "threads": profile.threads,
    }
    used |= {part: benchmark.hashes[part] for part in ("adapters", "pool") if part in method.reads}
    if "encoder" in method.reads:
        used |= {
            "encoder": {
                "hash": benchmark.hashes["encoder"],
                "layout": profile.encoder.layout,
                "instruction": profile.encoder.instruction,
            }
        }
    if "scorer" in method.settings:
        used |= {"scorer": profile.retrieval.scorer}
    if wanted := method.adapters_needed(k):
        used |= {"k": wanted}
    if temperature is not None and method.depends_on("temperature", k):
        used |= {"temperature": temperature}
    if profile.seed != 0:
        used |= {"seed": profile.seed}
    if profile.backend != "local":
        used |= {"backend": profile.backend}
    return used


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


def check_backend(variants: Sequence[Variant]) -> None:
    """Check that the profile's backend can do what the methods need.

    Raises:
        UserError: a method weighs adapters by token or looks into the model, and the backend has no model.
    """
    needing = [v.name for v in variants if v.method.gate is not None or "model" in v.method.reads]
    backend = variants[0].profile.backend
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
        keeps_learned: whether what the run's record names as learned is used, though other code learned it.

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
    if run.lines and recorded != resources.learned:
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
        key = answer_key(configuration, planned.row.inputs, planned.composition.weights)
        groups.setdefault(key, []).append(planned)
    return groups
