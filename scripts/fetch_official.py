"""Fetch the official benchmark, check it, and lay it out for the `llama2-*` profiles.

    python scripts/fetch_official.py --source LoraRetriever   # a folder, or a checkout of the authors' repository
    python scripts/fetch_official.py --pool config2.json      # the evaluation set from the Hub, the pool from a file

Writes OUT/test.json, OUT/pool.json and OUT/record.json (sources, commits, hashes, counts), after everything was found
and checked. Downloads go through the Hub's cache, adapters where the profiles look for them: nothing comes twice.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.progress import track

from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows, tasks_of
from lora_retriever.errors import UserError
from lora_retriever.files import hash_path, write_json

TEST_FILES = ("combined_test.json",)
POOL_FILES = ("config2.json", "config_new.json")  # the 48 tasks; the same and 18 more
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
    """What a benchmark must count. `domains` maps each domain to its metric, `short_tasks` are the uneven ones."""

    tasks: int
    rows: int
    rows_per_task: int
    samples: int
    domains: Mapping[str, str]
    short_tasks: Mapping[str, int] = field(default_factory=dict)


# Counted in combined_test.json and config2.json; but for `cb` also what the paper (arXiv 2402.09997) says.
OFFICIAL = Expected(
    tasks=48,
    rows=2395,
    rows_per_task=50,
    samples=20,
    domains={"struct to text": "rouge", "translation": "bleu", **dict.fromkeys(EXACT_MATCH_DOMAINS, "em")},
    short_tasks={"cb": 45},
)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and fetch; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/official"), help="default: data/official")
    parser.add_argument("--source", type=Path, help=f"folder with {TEST_FILES[0]} and {' or '.join(POOL_FILES)}")
    parser.add_argument("--eval-set", default=EVALUATION_SET, help="evaluation set on the Hub, without --source")
    parser.add_argument("--eval-revision", help="its commit, tag or branch")
    parser.add_argument("--pool", type=Path, help=f"the pool's file, {POOL_FILES[0]} of {WHERE}")
    parser.add_argument("--adapters", choices=["7b", "13b", "none"], default="none", help="fetch, or check in --source")
    parser.add_argument("--adapters-revision", help="tag or branch of the adapters on the Hub")
    parser.add_argument("--adapters-out", type=Path, help="folder for copies of the adapters, one sub-folder a task")
    parser.add_argument("--allow-different", action="store_true", help="other counts than the paper's only warn")
    args = parser.parse_args(arguments)
    try:
        lay_out(args)
    except (UserError, OSError) as error:
        print(f"fetch_official: {error}", file=sys.stderr)
        return 2
    return 0


def lay_out(args: argparse.Namespace) -> None:
    """Find everything, check it, and only then write."""
    if not args.source and not args.pool:
        raise UserError(f"the pool is not on the Hub: give --pool {POOL_FILES[0]}, or --source; it is in {WHERE}")
    if args.source:
        test_files = [find(args.source, TEST_FILES)]
        rows = read_rows(test_files[0])
    else:
        rows, test_files = fetch_rows(args.eval_set, args.eval_revision)
    pool_file = args.pool or find(args.source, POOL_FILES)
    entries = read_pool(pool_file)
    tasks = tasks_of(rows)
    pool = [entry for entry in entries if entry.model_name in tasks]
    differences = check_official(rows, pool, OFFICIAL, ", ".join(map(str, test_files)), str(pool_file))
    if differences and not args.allow_different:
        raise UserError("; ".join(differences) + ". If the files are meant to differ: --allow-different")
    adapters = {} if args.adapters == "none" else gather_adapters(args, tasks)
    for difference in differences:
        print(f"warning: {difference}", file=sys.stderr)
    write_json(args.out / "test.json", [row.model_dump(exclude={"id"}) for row in rows])
    write_json(args.out / "pool.json", [entry.model_dump(mode="json") for entry in pool])
    record = {
        "evaluation_set": provenance(args.source or args.eval_set, args.eval_revision, test_files),
        "pool": provenance(args.pool or args.source, None, [pool_file]),
        "adapters": adapters,
        "outputs": {name: hash_path(args.out / name) for name in ("test.json", "pool.json")},
        "counts": {"rows": len(rows), "tasks": len(tasks), "domains": Counter(row.domain for row in rows)},
        "differences": differences,
    }
    write_json(args.out / "record.json", record)
    print(
        f"{args.out}: {len(rows)} rows of {len(tasks)} tasks, and {len(pool)} of {len(entries)} entries of {pool_file}"
    )


def check_official(
    rows: Sequence[Row], pool: Sequence[PoolEntry], expected: Expected, rows_from: str = "rows", pool_from: str = "pool"
) -> list[str]:
    """Where the counts, domains or metrics are not the expected ones, a phrase each.

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
    """The rows of an evaluation set on the Hub, and their files: those of the test split where there are splits."""
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=ROW_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{repository} at {revision or 'main'}: the Hub does not give it ({reason})") from error
    paths = [path for path in sorted(folder.rglob("*")) if not path.name.startswith("dataset_info")]
    files = [path for path in paths if path.suffix in (".json", ".jsonl")]
    files = files or [path for path in paths if path.suffix == ".parquet"]
    files = [path for path in files if "test" in path.relative_to(folder).as_posix()] or files
    if not files:
        raise UserError(f"{repository}: holds neither JSON nor Parquet files; --source takes them from {WHERE}")
    if files[0].suffix != ".parquet":
        return [row for file in files for row in read_rows(file)], files
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"{repository}: holds Parquet files only; `pip install datasets` reads them") from error
    with tempfile.TemporaryDirectory() as scratch:
        as_json = Path(scratch) / f"{files[0].stem}.json"  # so that the same reader checks every field
        write_json(as_json, load_dataset("parquet", data_files=[str(file) for file in files], split="train").to_list())
        return read_rows(as_json), files


def gather_adapters(args: argparse.Namespace, tasks: Sequence[str]) -> dict[str, Any]:
    """What the record says of every task's adapter: found in `--source` if there are any, else fetched."""
    from lora_retriever.hub import fetch

    local = {task: find_adapter(args.source, args.adapters, task) for task in tasks} if args.source else {}
    source = args.source if any(local.values()) else None
    adapters: dict[str, list[Path]] = {}
    faults = []
    disable_progress_bars()  # one for each file
    for task in track(tasks, f"adapters {args.adapters}", console=Console(stderr=True)):
        name = ADAPTER.format(size=args.adapters, task=task)
        try:
            folder = local[task] if source else fetch(name, args.adapters_revision)
        except UserError as error:
            if not isinstance(error.__cause__, RepositoryNotFoundError):
                raise  # the next ones would fail as well
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
    for name, files in adapters.items() if args.adapters_out else ():
        copies = args.adapters_out / name.split("/")[-1]
        copies.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, copies / file.name)
    return {n: provenance(f[0].parent if source else n, args.adapters_revision, f) for n, f in adapters.items()}


def find_adapter(source: Path, size: str, task: str) -> Path | None:
    """The folder `…lora-TASK`, or `TASK` with an adapter in it, unless its path says it is of the other size."""
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


if __name__ == "__main__":
    sys.exit(main())
