"""How fast is an evaluation, beside others? `python scripts/running/bench_eval.py [--profile NAME|FILE]`

Ours is the command a user types, `lora-retriever run`, in a process of its own, from its start to its end, with empty
caches and an empty results folder. Beside ours, on the same rows, in one run of this script:

- the original's loop, and upstream PEFT's own `generate` in batches of 8 and of 32 (`eval_loops.py`). PEFT knows only
  the methods that give a row one adapter or none;
- with `--vllm PYTHON`, `lora-retriever run` with the backend of vLLM, by the Python of vLLM's environment
  (`scripts/backends/test_vllm.sh` makes one).

Ours answers no prompt twice under one composition, also across runs; the column "reused" counts the answers that were
taken from another row or run. With several rounds, the implementations take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from eval_loops import EvalLoop, OriginalLoop, UpstreamLoop

from lora_retriever.experiment.benchmark import Benchmark, open_benchmark
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.files import write_json
from lora_retriever.methods.paper import METHODS as PAPER
from lora_retriever.running.run_file import read_lines
from lora_retriever.tables import Table, terminal

METHODS = {method.name: method for method in PAPER}  # what the original evaluates
OF_ONE_ADAPTER = ("base", "selection", "selection_ood", "best_selection")
"""The methods that give every row one adapter or none."""
PEFT_BATCHES = (8, 32)
"""Numbers of rows in a batch of upstream PEFT."""


@dataclass(frozen=True)
class Measured:
    """The evaluation of one implementation: seconds in all and for each method, and the answers by row.

    Attributes:
        reused: the number of answers of each method that were taken from another row or run.
    """

    total: float
    seconds: dict[str, float]
    answers: dict[str, dict[int, str]]
    reused: dict[str, int]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--limit", type=int, help="rows per task (default: all)")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas (default: all eight)")
    parser.add_argument("--rounds", type=int, default=1, help="so often all take turns (default: once)")
    parser.add_argument("--vllm", metavar="PYTHON", help="measure the backend of vLLM, too, by this Python")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    names = args.only.split(",")
    others = implementations(args.profile, args.limit, names, args.vllm)
    ours: list[Measured] = []
    found: dict[str, list[Measured]] = {name: [] for name in others}
    for _ in range(args.rounds):
        ours.append(run_command(args.profile, args.limit, names))
        for name, measure in others.items():
            found[name].append(measure())
    figures = {name: compared(ours, measured) for name, measured in found.items()}
    for name, its in figures.items():
        print(terminal(table(its, name, args.profile)))
    if args.json:
        write_json(args.json, {"profile": args.profile, "limit": args.limit, "rounds": args.rounds, "beside": figures})


def implementations(
    profile: str, limit: int | None, names: Sequence[str], vllm: str | None
) -> dict[str, Callable[[], Measured]]:
    """The other implementations that are measured, by name."""
    loaded = load_profile(profile)
    found: dict[str, Callable[[], Measured]] = {
        "the original": partial(run_loop, OriginalLoop, loaded, limit, names),
    }
    if single := [name for name in names if name in OF_ONE_ADAPTER]:
        for batch in PEFT_BATCHES:
            loop = partial(UpstreamLoop, batch=batch)
            found[f"upstream PEFT, batches of {batch}"] = partial(run_loop, loop, loaded, limit, single)
    if vllm is not None:
        found["vLLM"] = partial(run_command, profile, limit, names, vllm, ("backend=vllm",))
    return found


def run_command(
    profile: str, limit: int | None, names: Sequence[str], python: str = sys.executable, settings: Sequence[str] = ()
) -> Measured:
    """Run `lora-retriever run` with empty folders. Its messages go to this process's standard error.

    Args:
        settings: fields of the profile to change, such as `backend=vllm`.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [python, "-m", "lora_retriever", "run", "--profile", profile, "--results", str(results)]
        command += ["--only", ",".join(names), *([] if limit is None else ["--limit", str(limit)])]
        command += [part for setting in settings for part in ("--set", setting)]
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "LORA_RETRIEVER_CACHE": folder})
        total = time.perf_counter() - started
        metas = {name: json.loads((results / f"{name}.meta.json").read_text(encoding="utf-8")) for name in names}
        answers = {
            name: {id: line["predicted_answer"] for id, line in read_lines(results, name).items()} for name in names
        }
    timings = {name: metas[name]["timings"] for name in names}
    seconds, reused = ({name: timings[name][what] for name in names} for what in ("seconds", "reused"))
    return Measured(total, seconds, answers, reused)


def run_loop(
    make: Callable[[Profile, Benchmark], EvalLoop], profile: Profile, limit: int | None, names: Sequence[str]
) -> Measured:
    """Another loop in this process. The time begins with the loading of the models."""
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    benchmark = open_benchmark(profile, limit)
    started = time.perf_counter()
    loop = make(profile, benchmark)
    seconds, answers = {}, {}
    for name in names:
        clock = time.perf_counter()
        answers[name] = dict(loop.answers(METHODS[name]))
        seconds[name] = time.perf_counter() - clock
    return Measured(time.perf_counter() - started, seconds, answers, dict.fromkeys(names, 0))


def compared(ours: Sequence[Measured], others: Sequence[Measured]) -> dict[str, Any]:
    """Rows per second of both, their ratio, and the number of equal answers, in all and for each method.

    If the other implementation ran only some of our methods, the two totals have different rows, and our total is left
    out.
    """
    names = list(others[0].answers)

    def figures(mine: Sequence[float], its: Sequence[float], only: Sequence[str]) -> dict[str, Any]:
        rows = sum(len(ours[0].answers[name]) for name in only)
        pairs = [(text, others[0].answers[name][id]) for name in only for id, text in ours[0].answers[name].items()]
        return {
            "rows": rows,
            "ours_seconds": round(median(mine), 2),
            "others_seconds": round(median(its), 2),
            "ours_rows_per_second": round(rows / median(mine), 2),
            "others_rows_per_second": round(rows / median(its), 2),
            "ratio": round(median(i / m for m, i in zip(mine, its, strict=True)), 2),
            "reused": sum(ours[0].reused[name] for name in only),
            "equal_answers": sum(first == second for first, second in pairs),
        }

    result: dict[str, Any] = {
        "configurations": {
            name: figures([one.seconds[name] for one in ours], [one.seconds[name] for one in others], [name])
            for name in names
        }
    }
    if names == list(ours[0].answers):
        result["all"] = figures([one.total for one in ours], [one.total for one in others], names)
    return result


def table(figures: dict[str, Any], name: str, profile: str) -> Table:
    """The figures beside one implementation, one line for each method."""
    lines = dict(figures["configurations"])
    if "all" in figures:
        lines["all, start to end"] = figures["all"]
    return Table(
        ["ours, rows/s", "other, rows/s", "times faster", "reused", "equal answers"],
        [
            (
                line,
                [
                    f"{its['ours_rows_per_second']:.2f}",
                    f"{its['others_rows_per_second']:.2f}",
                    f"{its['ratio']:.2f}",
                    str(its["reused"]),
                    f"{its['equal_answers']} of {its['rows']}",
                ],
            )
            for line, its in lines.items()
        ],
        notes=[f"Beside {name}. Profile {profile}, {torch.get_num_threads()} threads."],
    )


if __name__ == "__main__":
    main()
