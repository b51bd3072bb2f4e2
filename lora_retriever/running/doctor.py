"""`lora-retriever doctor`: the problems that a run would have, found before model weights are loaded onto a device.

A run makes the same checks before its first row. So a run accepts a profile without problems, unless the model weights
are damaged. Small models are loaded, so that their model weights are checked, too. The Hub is asked about models that
are not on this machine; if the Hub does not answer, a finding says so.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_retriever.data.fetching import ADAPTER
from lora_retriever.data.rows import PoolEntry, Row, read_rows
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.experiment.benchmark import Benchmark, adapter_folder, folder_of, pool_of
from lora_retriever.experiment.checks import benchmark_problems, benchmark_warnings
from lora_retriever.experiment.profile import BALANCED, OFFICIAL, Profile
from lora_retriever.hub import ENCODER_WANTED, WANTED, HubAnswer, ask_hub, is_cached
from lora_retriever.methods import methods_of
from lora_retriever.metrics import METRICS, SCORINGS, Scoring
from lora_retriever.retrieval.encoders import Encoder, load_encoder
from lora_retriever.retrieval.encoding import encode_texts
from lora_retriever.retrieval.own import find_encoder
from lora_retriever.running.memory import GIB, ModelShape, beside, size_text
from lora_retriever.running.models import NAMES_LISTED, BaseFindings, inspect_adapters, inspect_base
from lora_retriever.running.plan import (
    check_backend,
    check_encoder,
    check_names,
    check_pool_size,
    detecting_procedures,
)
from lora_retriever.running.prediction import predicted_for, weights_size
from lora_retriever.running.results_folder import locked
from lora_retriever.running.sweep import Variant, expand

if TYPE_CHECKING:
    from peft_composition import AdapterHeader

BYTES_PER_ANSWER = 4096
"""Size of a row with its answer, in bytes. The official rows have about 1,000."""
LARGEST_READ = 2 * GIB
"""Maximum size of model weights that are read to look for NaN, in bytes. A run looks at model weights of any size."""
QUOTED = re.compile(r"'[^']+'")
"""The first name that a line quotes."""
FETCH = "`lora-retriever fetch --source FOLDER`, with a checkout of the authors' repository as FOLDER,"
"""The command that writes the official data."""
TIGHT = 0.9
"""Share of the free memory above which a prediction is a warning."""


@dataclass(frozen=True)
class Finding:
    """The result of one check: `ok`, `warning` (a run may work) or `problem` (a run will not)."""

    level: Literal["ok", "warning", "problem"]
    text: str


class _Hub:
    """Questions to the Hub. After the first request that the Hub does not answer, no other request is made."""

    def __init__(self, offline: bool) -> None:
        self._silent = HubAnswer(None, "the Hub was not asked (--offline)") if offline else None

    def finding(
        self, what: str, location: str, revision: str | None, file: str = "config.json", how: str = ""
    ) -> Finding:
        """The finding about a model that is not on this machine.

        Args:
            file: a file of the model, for which the Hub is asked.
            how: the command that fetches the model. Empty: the Hub's own command.
        """
        answer = self._silent or ask_hub(location, revision, file)
        absent = f"{what}: {location} is not on this machine"
        if answer.gives:
            return Finding("warning", f"{absent}; a run will fetch it, or now: `{how or f'hf download {location}'}`")
        if answer.gives is False:
            return Finding("problem", f"{absent}, and the Hub does not give it: {answer.reason}")
        self._silent = answer
        return Finding("warning", f"{absent}, and whether a run can fetch it is not known: {answer.reason}")


def examine(profile: Profile, results: Path, offline: bool = False) -> Iterator[Finding]:
    """Check everything that a run of this profile needs. A check that fails does not stop the other checks.

    Args:
        offline: whether to ask the Hub nothing about models that are not on this machine.
    """
    hub = _Hub(offline)
    rows: list[Row] = []
    pool: list[PoolEntry] = []
    try:
        notes: list[str] = []
        rows = read_rows(profile.rows_source, notes=notes)
        yield Finding("ok", f"rows: {len(rows)} in {profile.rows_path}")
        yield from (Finding("warning", f"rows: {note}") for note in notes)
    except UserError as error:
        yield Finding("problem", f"rows: {error}")
    try:
        drawing: list[str] = []
        pool = pool_of(profile, rows, drawing)
        yield Finding("ok", f"pool: {len(pool)} adapters in {profile.pool_path}")
        yield from (Finding("warning", f"pool: {note}") for note in drawing)
    except UserError as error:
        yield Finding("problem", f"pool: {error}")
    if rows and pool:
        yield from (Finding("problem", text) for text in grouped(list(benchmark_problems(profile, rows, pool))))
        yield from (Finding("warning", text) for text in benchmark_warnings(profile, rows, pool))
    if not (rows and pool) and any(OFFICIAL in file for file in (profile.data.rows, profile.data.pool)):
        yield Finding("warning", f"official data: {FETCH} writes rows and pool where this profile reads them")
    if rows:
        yield from _examine_metrics(profile, rows)
    variants, uses_encoder, findings = _examine_methods(profile, rows, pool)
    yield from findings
    yield from _examine_models(profile, rows, pool, uses_encoder, hub)
    yield from _examine_encoder(profile, rows, uses_encoder, hub)
    yield _examine_disk(results, len(rows) * len(variants) * BYTES_PER_ANSWER)


def grouped(lines: Sequence[str]) -> list[str]:
    """The lines. Lines that differ only by their first quoted name become one line that lists the names."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        quoted = QUOTED.search(line)
        name = quoted[0] if quoted else ""
        key = re.sub(rf"(?<!\w){re.escape(name.strip(chr(39)))}(?!\w)", "…", line) if name else line
        found.setdefault(key, []).append((line, name))
    result = []
    for key, alike in found.items():
        names = list(dict.fromkeys(name for _, name in alike))
        if len(names) == 1:
            result.append(alike[0][0])
            continue
        more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
        result.append(key.replace("'…'", ", ".join(names[:NAMES_LISTED]) + more, 1))
    return result


def _examine_metrics(profile: Profile, rows: Sequence[Row]) -> Iterator[Finding]:
    """Every metric, under both scorings, tried on the first row that names it, with the target as the answer.

    If a user's own metric fails on the row, this is a warning, because the metric may need several rows.
    """
    first = {row.metric: row for row in reversed(rows)}
    tried = []
    for metric, row in sorted(first.items()):
        answer = row.targets if isinstance(row.targets, str) else next(iter(row.targets), "")
        scorings = [Scoring(name, metric_folders=profile.metric_folders) for name in SCORINGS]
        try:
            metrics = [used for scoring in scorings for used in scoring.metrics_of(row.task, metric)]
        except UserError as error:
            yield Finding("problem", f"metrics: row {row.id}: {error}")
            continue
        try:
            for used in metrics:
                used.combine(used.statistics([answer], [row.targets]).sum(axis=0))
        except Exception as error:  # a library or a user's own code may raise anything
            reason = str(error) if isinstance(error, UserError) else one_line_of(error)
            level: Literal["problem", "warning"] = "problem" if metric in METRICS else "warning"
            yield Finding(level, f"metrics: {metric} cannot score row {row.id} alone: {reason}")
        else:
            tried.append(metric)
    if tried:
        yield Finding("ok", f"metrics: {', '.join(tried)}, each tried on a row")


def _examine_methods(
    profile: Profile, rows: list[Row], pool: list[PoolEntry]
) -> tuple[list[Variant], bool, list[Finding]]:
    """The runs of the profile, whether they need an encoder, and whether the pool and the backend serve them.

    If the methods cannot be used, the encoder counts as needed, so that the encoder is checked.
    """
    try:
        variants = expand(profile, methods_of(profile), [])
        check_names(variants)
        uses_encoder = check_encoder(variants)
        check_backend(variants, rows)
        for variant in variants:
            variant.method.describe()
        if pool:
            nowhere = Path()
            check_pool_size(variants, Benchmark(rows, None, pool, nowhere, None, {}, {}))
    except UserError as error:
        return [], True, [Finding("problem", f"methods: {error}")]
    except Exception as error:  # a user's own code may raise anything
        return [], True, [Finding("problem", f"methods: {one_line_of(error)}")]
    return variants, uses_encoder, [Finding("ok", f"methods: {len(variants)}")]


def _examine_models(
    profile: Profile, rows: Sequence[Row], pool: Sequence[PoolEntry], uses_encoder: bool, hub: _Hub
) -> Iterator[Finding]:
    """Base model, prompts, adapters, device and memory."""
    base, findings = _examine_base(profile, hub)
    yield from findings
    if base is not None and rows:
        yield _examine_prompts(profile, rows, pool, base)
    elif rows:
        yield Finding("warning", "prompts: the template cannot be tried without the base model's tokenizer")
    try:
        detects = bool(detecting_procedures(profile, rows))
    except UserError:  # `_examine_methods` has said so
        detects = False
    adapters, findings = _examine_adapters(profile, pool, base, hub, detects)
    yield from findings
    try:
        device = profile.torch_device
    except UserError as error:
        yield Finding("problem", f"device: {error}")
    else:
        yield _examine_device(profile, device)
        if base is None:
            yield Finding("warning", "memory: cannot be predicted without the base model")
        else:
            yield _examine_memory(profile, len(pool), list(adapters.values()), base, device, uses_encoder)


def _here(profile: Profile, location: str, revision: str | None, wanted: Sequence[str] = WANTED) -> Path | None:
    """The folder of a location. None: the location is a Hub id that is not on this machine.

    Raises:
        UserError: there is no such folder.
    """
    if profile.local_path(location) is None and not is_cached(location, revision):
        return None
    return folder_of(profile, location, revision, wanted)


def _examine_base(profile: Profile, hub: _Hub) -> tuple[BaseFindings | None, list[Finding]]:
    location = profile.base.location
    try:
        folder = _here(profile, location, profile.base.revision)
        if folder is None:
            return None, [hub.finding("base model", location, profile.base.revision)]
        base = inspect_base(folder, profile.generation)
        findings = [Finding("warning", f"base model: {warning}") for warning in base.warnings]
        return base, [_examine_weights("base model", folder), *findings]
    except UserError as error:
        return None, [Finding("problem", f"base model: {error}")]
    except Exception as error:  # any library that reads the file may raise anything
        return None, [Finding("problem", f"base model: {location} cannot be used: {one_line_of(error)}")]


def _examine_weights(what: str, folder: Path) -> Finding:
    """Check that the model weights are there, readable, and, if not too large, without NaN and infinity."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return Finding("problem", f"{what}: {folder} lacks *.safetensors")
    size = sum(path.stat().st_size for path in files)
    if size > LARGEST_READ:
        return Finding("ok", f"{what}: {folder} ({size / GIB:.1f} GiB of weights, which a run looks at for NaN)")
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (the opened file is no mapping)
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and not tensor.isfinite().all():
                        return Finding("problem", f"{what}: {path}: {name} holds NaN or infinity; the file is damaged")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        return Finding("problem", f"{what}: {path} is not a readable safetensors file: {one_line_of(error)}")
    return Finding("ok", f"{what}: {folder}")


def _examine_prompts(profile: Profile, rows: Sequence[Row], pool: Sequence[PoolEntry], base: BaseFindings) -> Finding:
    from lora_retriever.generation.generator import row_prompts

    try:
        prompts = row_prompts(rows, base.tokenizer, profile.generation, pool)
    except UserError as error:
        return Finding("problem", f"prompts: {error}")
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if profile.generation.shots:
        fewer = sum((prompt.shots or 0) < profile.generation.shots for prompt in prompts)
        if fewer:
            return Finding(
                "warning",
                f"prompts: {fewer} of {len(prompts)} have fewer than generation.shots = {profile.generation.shots} "
                "examples: they do not fit into generation.max_prompt_tokens = "
                f"{profile.generation.max_prompt_tokens}, or the pool has no more samples of the row's own adapter",
            )
    cut = sum(prompt.truncated_tokens > 0 for prompt in prompts)
    if cut:
        return Finding(
            "warning",
            f"prompts: {cut} of {len(prompts)} are longer than generation.max_prompt_tokens = "
            f"{profile.generation.max_prompt_tokens} and will be cut",
        )
    return Finding("ok", f"prompts: the template was tried on every row; at most {longest} tokens")


def _examine_adapters(
    profile: Profile, pool: Sequence[PoolEntry], base: BaseFindings | None, hub: _Hub, detects: bool
) -> tuple[Mapping[str, AdapterHeader], list[Finding]]:
    folders: dict[str, Path | UserError] = {}
    absent = []
    for entry in pool:
        name = entry.model_name
        location = profile.adapter_location(name)
        try:
            if profile.local_path(location) is None and not is_cached(location, profile.adapters.revision):
                absent.append(location)
            else:
                folders[name] = adapter_folder(profile, name)
        except UserError as error:
            folders[name] = error
    found = inspect_adapters(folders, None if base is None else base.skeleton, detects)
    findings = [Finding("problem", problem) for problem in grouped(found.problems)]
    findings += [Finding("warning", warning) for warning in found.warnings]
    if absent:
        what = f"adapters: {len(absent)} of {len(pool)} are not here; the first"
        official = {ADAPTER.format(size=size, task="{adapter}"): size for size in ("7b", "13b")}
        size = official.get(profile.adapters.location)
        how = f"lora-retriever fetch --source FOLDER --adapters {size}" if size else ""
        findings.append(hub.finding(what, absent[0], profile.adapters.revision, "adapter_config.json", how))
    if found.headers:
        findings.append(Finding("ok", f"adapters: {len(found.headers)} of {len(pool)} are there"))
    return found.headers, findings


def _examine_device(profile: Profile, device: str) -> Finding:
    if device == "cpu" and profile.dtype != "float32":
        return Finding(
            "warning", f"device: {profile.dtype} on a CPU is slow on many machines; set dtype: float32 to try"
        )
    return Finding("ok", f"device: {device}, {profile.dtype}")


def _examine_encoder(profile: Profile, rows: Sequence[Row], is_used: bool, hub: _Hub) -> Iterator[Finding]:
    """Check that a used encoder is there. An encoder that is not too large is loaded and tried on two rows."""
    settings = profile.encoder
    if settings is None:
        return
    if not is_used:
        yield Finding("ok", f"encoder: {settings.location} is not used by these methods")
        return
    location, texts = settings.location, [row.inputs for row in rows[:2]] or ["a text", "another text"]
    if settings.is_own:
        yield _try_encoder(location, lambda: find_encoder(location, profile.folder), texts)
        return
    try:
        folder = _here(profile, location, settings.revision, ENCODER_WANTED)
    except UserError as error:
        yield Finding("problem", f"encoder: {error}")
        return
    if folder is None:
        yield hub.finding("encoder", location, settings.revision)
        return
    if weights_size(folder) > LARGEST_READ:
        absent = [name for name in ("config.json", "modules.json") if not (folder / name).is_file()]
        if absent:
            yield Finding("problem", f"encoder: {folder} lacks {', '.join(absent)}")
        else:
            yield Finding("ok", f"encoder: {folder}")
        return
    load = partial(load_encoder, folder, settings.layout, settings.instruction, settings.batch_size)
    yield _try_encoder(str(folder), load, texts)


def _try_encoder(name: str, load: Callable[[], Encoder], texts: Sequence[str]) -> Finding:
    """Load an encoder and encode some texts."""
    try:
        vectors = encode_texts(load(), texts)
    except UserError as error:
        return Finding("problem", str(error))
    except Exception as error:  # parts of a checkpoint that do not fit, or a user's own code
        return Finding("problem", f"encoder: {name} cannot be used: {one_line_of(error)}")
    return Finding("ok", f"encoder: {name}, {vectors.shape[1]} numbers for a text")


def _examine_memory(
    profile: Profile,
    adapters: int,
    headers: Sequence[AdapterHeader],
    base: BaseFindings,
    device: str,
    uses_encoder: bool,
) -> Finding:
    """The predicted memory of the largest batch of a mixture (`memory`), and the free memory of the device."""
    try:
        shape = ModelShape.of_model(base.skeleton.config)
    except UserError as error:
        return Finding("warning", f"memory: cannot be predicted: {error}")
    used = predicted_for(profile, adapters, headers, shape, base.skeleton.num_parameters())
    free = free_memory(device)
    encoder = _encoder_size(profile) if uses_encoder else 0
    sizes = {**asdict(used), **beside(used, shape, device, encoder)}
    total = sum(sizes.values())
    parts = ", ".join(f"{what} {size_text(size)}" for what, size in sizes.items() if size)
    text = f"memory: {size_text(total)} at most ({parts}); {size_text(free)} are free on {device}"
    if used.weights > free:
        return Finding("problem", f"{text}: the model does not fit; choose a smaller dtype or another device")
    if used.weights + used.adapters > free:
        return Finding("problem", f"{text}: the adapters do not fit beside the model; set adapters.memory")
    if total > TIGHT * free:
        return Finding("warning", f"{text}: tight; lower generation.batch_size or set generation.batch_tokens")
    return Finding("ok", text)


def _encoder_size(profile: Profile) -> int:
    """The size of the encoder's model weights, in bytes; 0 if the encoder is not on this machine or is a user's own."""
    settings = profile.encoder
    if settings is None or settings.is_own:
        return 0
    try:
        return weights_size(_here(profile, settings.location, settings.revision, ENCODER_WANTED))
    except UserError:  # another finding names this error
        return 0


def free_memory(device: str) -> int:
    """The free memory of a device, in bytes."""
    import torch

    if device == BALANCED:
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # macOS does not tell the free memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _examine_disk(results: Path, needed: int) -> Finding:
    """Check that the results folder can be made and held, and that the answers fit onto its disk."""
    try:
        there = next(folder for folder in (results.resolve(), *results.resolve().parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            return Finding("problem", f"results folder {results}: {there} cannot be written")
        if results.is_dir():
            with locked(results) as folder:
                folder.require_writable()
        free = shutil.disk_usage(there).free
    except UserError as error:
        return Finding("problem", str(error))
    except (OSError, ValueError) as error:
        return Finding("problem", f"results folder {results}: cannot be looked at ({one_line_of(error)})")
    text = f"disk: about {needed / GIB:.3f} GiB of answers, {free / GIB:.1f} GiB free under {there}"
    return Finding("ok" if free > 2 * needed else "problem", text)
