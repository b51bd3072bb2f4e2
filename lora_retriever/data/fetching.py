"""The paper's official benchmark: found or fetched, checked, and laid out for the profiles `llama2-*`.

Every download goes into the Hub's cache, where the profiles find the adapters. So no file is downloaded twice.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows, tasks_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich
from lora_retriever.files import hash_path, write_json, writing
from lora_retriever.hub import fetch

TEST_FILES = ("combined_test.json",)
POOL_FILES = ("config2.json", "config_new.json")  # the numbers of adapters: 48 tasks, or these 48 and 18 further tasks
WHERE = "the authors' repository, github.com/StyxXuan/LoraRetriever"
EVALUATION_SET = "Styxxxx/LoraRetriever_EvalSet"
ROW_FILES = ["*.json", "*.jsonl", "*.parquet"]
ADAPTER = "Styxxxx/llama2_{size}_lora-{task}"
ADAPTER_FILES = ["adapter_config.json", "*.safetensors"]  # never pickled weights
EXACT_MATCH_DOMAINS = (
    "closed_book QA", "commonsense", "coreference", "nli", "paraphrase", "read.comp.w:commonsense", "reading comp",
    "sentiment",
)  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """The numbers that a benchmark must have. `domains` maps each domain to its metric, `short_tasks` has the tasks
    with fewer rows."""

    tasks: int
    rows: int
    rows_per_task: int
    samples: int
    domains: Mapping[str, str]
    short_tasks: Mapping[str, int] = field(default_factory=dict)


# Counted in combined_test.json and config2.json. Except for `cb`, the paper (arXiv 2402.09997) states the same numbers.
OFFICIAL = Expected(
    tasks=48,
    rows=2395,
    rows_per_task=50,
    samples=20,
    domains={"struct to text": "rouge", "translation": "bleu", **dict.fromkeys(EXACT_MATCH_DOMAINS, "em")},
    short_tasks={"cb": 45},
)


@dataclass(frozen=True)
class Sources:
    """Where the official files come from.

    Attributes:
        source: a folder with the files, such as a checkout of the authors' repository. None: the Hub has the rows.
        eval_set: the evaluation set on the Hub, which is used without `source`.
        eval_revision: the set's commit, tag or branch.
        pool: the pool's file. None: the file is in `source`.
        adapters: the adapters to find in `source`; adapters that `source` lacks are fetched.
        adapters_revision: tag or branch of the adapters on the Hub.
        adapters_out: folder for copies of the adapters, one sub-folder for each task.
    """

    source: Path | None = None
    eval_set: str = EVALUATION_SET
    eval_revision: str | None = None
    pool: Path | None = None
    adapters: Literal["7b", "13b", "none"] = "none"
    adapters_revision: str | None = None
    adapters_out: Path | None = None


def official_folder() -> Path:
    """The folder of the official benchmark: `data/official` of the checkout, or of the current folder without one."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "setup.py").is_file() else Path.cwd()) / "data" / "official"


def lay_out(sources: Sources, out: Path, allow_different: bool, console: Console) -> str:
    """Find and check everything, and only then write `test.json`, `pool.json` and `record.json` into the folder `out`.

    Args:
        allow_different: whether other counts than the paper's are only a warning.
        console: where warnings and progress go.

    Returns:
        One line that says what was written.

    Raises:
        UserError: a file or an adapter is missing, or the files are not the paper's files.
    """
    if not sources.source and not sources.pool:
        raise UserError(f"the pool is not on the Hub: give --pool {POOL_FILES[0]}, or --source; it is in {WHERE}")
    if sources.source:
        test_files = [find(sources.source, TEST_FILES)]
        rows = read_rows(test_files[0])
    else:
        rows, test_files = fetch_rows(sources.eval_set, sources.eval_revision)
    pool_file = sources.pool or find(_folder_of(sources), POOL_FILES)
    entries = read_pool(pool_file)
    tasks = tasks_of(rows)
    pool = [entry for entry in entries if entry.model_name in tasks]
    differences = check_official(rows, pool, OFFICIAL, ", ".join(map(str, test_files)), str(pool_file))
    if differences and not allow_different:
        raise UserError("; ".join(differences) + ". If the files are meant to differ: --allow-different")
    adapters = {} if sources.adapters == "none" else gather_adapters(sources, tasks, console)
    for difference in differences:
        console.print(for_rich(f"warning: {difference}"), soft_wrap=True)
    record = {
        "evaluation_set": provenance(sources.source or sources.eval_set, sources.eval_revision, test_files),
        "pool": provenance(sources.pool or _folder_of(sources), None, [pool_file]),
        "adapters": adapters,
        "counts": {"rows": len(rows), "tasks": len(tasks), "domains": Counter(row.domain for row in rows)},
        "differences": differences,
    }
    with writing(out):
        write_json(out / "test.json", [row.model_dump(exclude={"id"}) for row in rows])
        write_json(out / "pool.json", [entry.model_dump(mode="json") for entry in pool])
        record["outputs"] = {name: hash_path(out / name) for name in ("test.json", "pool.json")}
        write_json(out / "record.json", record)
    return f"{out}: {len(rows)} rows of {len(tasks)} tasks, and {len(pool)} of {len(entries)} entries of {pool_file}"


def _folder_of(sources: Sources) -> Path:
    """The folder with the official files, which is named where no pool's file is named."""
    assert sources.source is not None, "neither a folder nor a pool"
    return sources.source


def check_official(
    rows: Sequence[Row], pool: Sequence[PoolEntry], expected: Expected, rows_from: str = "rows", pool_from: str = "pool"
) -> list[str]:
    """One phrase for each count, domain or metric that differs from the expected value.

    Raises:
        UserError: a task is not of one kind, or rows and pool do not fit each other: no run could use them.
    """
    kinds: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        kinds[row.task].add((row.domain, row.metric))
    if mixed := ", ".join(task for task, kind in kinds.items() if len(kind) > 1):
        raise UserError(f"{rows_from}: more than one domain or metric in {mixed}")
    if in_one := kinds.keys() ^ {entry.model_name for entry in pool}:
        raise UserError(f"{pool_from}: not the tasks of {rows_from}; in one of them only: {', '.join(sorted(in_one))}")
    for entry in pool:
        ((domain, _),) = kinds[entry.model_name]
        if entry.domain != domain:
            raise UserError(f"{pool_from}: {entry.model_name} is {entry.domain!r}, but {domain!r} in {rows_from}")
    counts = [(rows_from, "tasks", len(kinds), expected.tasks), (rows_from, "rows", len(rows), expected.rows)]
    for task, count in Counter(row.task for row in rows).items():
        counts.append((rows_from, f"rows of {task}", count, expected.short_tasks.get(task, expected.rows_per_task)))
    counts += [(pool_from, f"samples of {entry.model_name}", len(entry.sample), expected.samples) for entry in pool]
    differences = [f"{file}: {n} {what}, expected {wanted}" for file, what, n, wanted in counts if n != wanted]
    found = {kind for (kind,) in kinds.values()}
    for domain, metric in sorted(found ^ set(expected.domains.items())):
        change = "new" if (domain, metric) in found else "no"
        differences.append(f"{rows_from}: {change} domain {domain!r} with metric {metric}")
    return differences


def find(source: Path, names: Iterable[str]) -> Path:
    """The file of the first of these names that is anywhere in the folder; several must be copies of one another."""
    if not source.is_dir():
        raise UserError(f"--source {source}: no such folder")
    for name in names:
        files = sorted(path for path in source.rglob(name) if path.is_file())
        for other in files[1:]:
            if hash_path(other) != hash_path(files[0]):
                raise UserError(f"{files[0]} and {other} differ: name the folder of the right one with --source")
        if files:
            return files[0]
    raise UserError(f"{source}: no {' or '.join(names)}, nor in its sub-folders. It is in {WHERE}")


def fetch_rows(repository: str, revision: str | None) -> tuple[list[Row], list[Path]]:
    """The rows of an evaluation set on the Hub, and their files. If the set has splits, the test split is read."""
    folder = fetch(repository, revision, ROW_FILES, repo_type="dataset")
    paths = [path for path in sorted(folder.rglob("*")) if not path.name.startswith("dataset_info")]
    files = [path for path in paths if path.suffix in (".json", ".jsonl")]
    files = files or [path for path in paths if path.suffix == ".parquet"]
    files = [path for path in files if "test" in path.relative_to(folder).as_posix()] or files
    if not files:
        raise UserError(f"{repository}: holds neither JSON nor Parquet files; --source takes them from {WHERE}")
    return [row for file in files for row in read_rows(file)], files


def gather_adapters(sources: Sources, tasks: Sequence[str], console: Console) -> dict[str, Any]:
    """The part of the record about the adapters. The adapters are read from the source folder if the folder has
    adapters, and else fetched.
    """
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    size, revision = sources.adapters, sources.adapters_revision
    local = {task: find_adapter(sources.source, size, task) for task in tasks} if sources.source else {}
    source = sources.source if any(local.values()) else None
    adapters: dict[str, list[Path]] = {}
    faults = []
    disable_progress_bars()  # one for each file
    for task in track(tasks, f"adapters {size}", console=console):
        name = ADAPTER.format(size=size, task=task)
        try:
            folder = local[task] if source else fetch(name, revision)
        except UserError as error:
            if not isinstance(error.__cause__, RepositoryNotFoundError):
                raise  # the next downloads would fail as well
            folder = None
        found = {pattern: sorted(folder.glob(pattern)) if folder else [] for pattern in ADAPTER_FILES}
        adapters[name] = [file for files in found.values() for file in files]
        absent = [pattern for pattern, files in found.items() if not files]
        if absent:
            faults.append(f"{task} (no {' and no '.join(absent)})" if folder else f"{task} (not found)")
    if faults:
        raise UserError(
            f"{source or 'the Hub'}: {len(faults)} of {len(tasks)} adapters cannot be used: {', '.join(faults)}"
        )
    if sources.adapters_out is not None:
        with writing(sources.adapters_out):
            for name, files in adapters.items():
                copies = sources.adapters_out / name.split("/")[-1]
                copies.mkdir(parents=True, exist_ok=True)
                for file in files:
                    shutil.copyfile(file, copies / file.name)
    return {n: provenance(f[0].parent if source else n, revision, f) for n, f in adapters.items()}


def find_adapter(source: Path, size: str, task: str) -> Path | None:
    """The folder `…lora-TASK`, or a folder `TASK` with an adapter, unless the path names the other size of the base."""
    folders = {path for path in source.rglob(f"*lora-{task}") if path.is_dir()}
    folders |= {path.parent for path in source.rglob(f"{task}/adapter_config.json")}
    other = {"7b": "13b", "13b": "7b"}[size]
    fitting = sorted(path for path in folders if other not in str(path.relative_to(source)))
    if len(fitting) > 1:
        raise UserError(f"two adapters for {task}: {fitting[0]} and {fitting[1]}; name a narrower --source")
    return fitting[0] if fitting else None


def provenance(origin: str | Path, revision: str | None, files: Sequence[Path]) -> dict[str, Any]:
    """Where files are from; the Hub's cache names their folder after the commit."""
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", files[0].as_posix())
    at = {"revision": revision, "commit": commit[1] if commit else None}
    return {"from": str(origin), **at, "sha256": {file.name: hash_path(file) for file in files}}
