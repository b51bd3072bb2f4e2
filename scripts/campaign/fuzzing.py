"""Fuzzing: mutated files through every reader, by hypothesis. A reader gives a value or an error of the project."""

from __future__ import annotations

import json
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from campaign.cases_results import LINE, RECORD, zipped
from campaign.figures import Log
from campaign.inputs import make_benchmark
from campaign.world import TINY
from lora_retriever import AdapterIndex
from lora_retriever.analysis.retrieval.precomputed import read_embeddings
from lora_retriever.analysis.runs import open_results
from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import load_profile
from lora_retriever.metrics import read_kinds
from lora_retriever.running.run_file import RunFile
from peft_composition import AdapterError, ComposableModel, CompositionError, inspect_adapter

EXAMPLES = 200
"""Number of files of one round of one target."""
HANGS_AFTER = 20
"""Time after which a reader counts as hanging, in seconds."""
MAX_MESSAGE = 3000
"""Maximum length of an error's message, in characters."""
TOKENS = (
    b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e999", b"-0.0", b"NaN", b"Infinity", b"7" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\\ud83d", b"\xff", b"\xef\xbb\xbf", b'"', b"\\", b"\n", b"\r\n", b",",
    b":", b"../", b"~", b"/dev/zero", b"&a [*a]", b"*a", b"!!python/object/apply:os.system", b"<<: ", b"---\n", b"\t",
    "\u2028".encode(), "é".encode(), b"\x1f\x8b", b"PK\x03\x04", b"\xff" * 8, b"\x00" * 8, b"(x+x+)+y", b"F32", b"I64",
)  # fmt: skip
"""Pieces that are put into files."""
ODD = ("LORA", "q_proj", "all-linear", "(", "em", "./m.py", "..", "\ud83d", "\0")
TEXTS = st.text(max_size=12) | st.sampled_from(ODD)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 1e300, 2**63])
VALUES: Any = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


class HangError(Exception):
    """A reader did not return in time."""


@dataclass(frozen=True)
class Target:
    """A reader, and a file that it reads.

    Attributes:
        file: the mutated file, in the folder that `read` gets.
        read: reads the file.
        own: the errors that the reader may raise.
        is_json: whether values within the file are exchanged as well.
        has_header: whether the file is a safetensors file, whose header is JSON.
    """

    name: str
    file: str
    read: Callable[[Path], object]
    own: tuple[type[Exception], ...]
    is_json: bool = False
    has_header: bool = False


def make_targets(folder: Path) -> list[Target]:
    """The readers, with sound files in `folder`."""
    from transformers import AutoModelForCausalLM

    make_benchmark(folder)
    results = folder / "results"
    results.mkdir()
    (results / "base.jsonl").write_text("".join(json.dumps({**LINE, "id": id}) + "\n" for id in range(3)))
    (results / "base.meta.json").write_text(json.dumps({**RECORD, "versions": {"a": "1"}, "timings": {"seconds": 1.5}}))
    (folder / "kinds.yaml").write_text("qa: [people_qa, city_qa]\nchoice:\n  - movie_review\n")
    (folder / "e.npz").write_bytes(zipped())
    generator = np.random.default_rng(0)
    samples = [generator.normal(size=(3, 4)).astype(np.float32) for _ in range(3)]
    AdapterIndex.from_embeddings(["a", "b", "c"], samples).save(folder / "index")
    texts = [["x", "y", "z"]] * 3
    AdapterIndex.from_embeddings(["a", "b", "c"], samples, "hybrid", texts).save(folder / "hybrid")
    AdapterIndex.from_embeddings(["a", "b", "c"], samples, "discriminant").save(folder / "private", private=True)
    base = AutoModelForCausalLM.from_pretrained(TINY / "base")
    adapter = "adapters/passive"

    def load_adapter(folder: Path) -> None:
        inspect_adapter(folder / adapter, "fuzzed")
        ComposableModel(base).load_adapter(folder / adapter, "fuzzed")

    def search(name: str) -> Callable[[Path], object]:
        def read(folder: Path) -> object:
            index = AdapterIndex.load(folder / name)
            queries = generator.normal(size=(2, 4)).astype(np.float32)
            return index.search(queries, 1, texts=["x", "y"] if name == "hybrid" else None)

        return read

    user, own = (UserError,), (AdapterError, CompositionError)
    run = "results/base"
    return [
        Target("rows", "rows.json", lambda f: read_rows(f / "rows.json"), user, True),
        Target("pool", "pool.json", lambda f: read_pool(f / "pool.json"), user, True),
        Target("profile", "mine.yaml", lambda f: load_profile(str(f / "mine.yaml")), user),
        Target("kinds", "kinds.yaml", lambda f: read_kinds(f / "kinds.yaml"), user),
        Target("adapter configuration", f"{adapter}/adapter_config.json", load_adapter, own, True),
        Target("adapter weights", f"{adapter}/adapter_model.safetensors", load_adapter, own, has_header=True),
        Target("results: rows, by summarize", f"{run}.jsonl", lambda f: open_results(f / "results"), user),
        Target("results: record, by summarize", f"{run}.meta.json", lambda f: open_results(f / "results"), user, True),
        Target("results: rows, by run", f"{run}.jsonl", lambda f: RunFile(f / "results", "base", {"method": {}}), user),
        Target(
            "results: record, by run",
            f"{run}.meta.json",
            lambda f: RunFile(f / "results", "base", {"method": {}}),
            user,
            True,
        ),
        Target("index", "index/index.safetensors", search("index"), (ValueError,), has_header=True),
        Target("index with texts", "hybrid/index.safetensors", search("hybrid"), (ValueError,), has_header=True),
        Target("private index", "private/index.safetensors", search("private"), (ValueError,), has_header=True),
        Target("embeddings", "e.npz", lambda f: read_embeddings(f / "e.npz"), user),
    ]


def fuzz(scratch: Path, log: Log, seconds: float) -> None:
    """Fuzz all targets in turns until the time is over. The time of earlier starts counts."""
    warnings.simplefilter("ignore")
    folder = scratch / "fuzzed"
    targets = make_targets(folder)
    spent = sum(trial.facts["seconds"] for trial in log.trials.values())
    turn = 0
    while spent < seconds:
        target = targets[turn % len(targets)]
        key = f"{target.name}, seed {turn // len(targets)}"
        turn += 1
        if key in log.trials:
            continue
        began = time.monotonic()
        files, refused, problems = fuzz_once(target, folder, turn // len(targets))
        took = time.monotonic() - began
        spent += took
        log.add(key, target.name, problems, files=files, refused=refused, seconds=round(took, 2))


def fuzz_once(target: Target, folder: Path, seed: int, examples: int = EXAMPLES) -> tuple[int, int, list[str]]:
    """One round of one target: the number of files, how many were refused, and problems by where they were raised."""
    path = folder / target.file
    sound = path.read_bytes()
    counts = {"files": 0, "refused": 0}
    problems: dict[str, str] = {}

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def read(data: st.DataObject) -> None:
        content = data.draw(mutated(target, sound))
        path.write_bytes(content)
        counts["files"] += 1
        try:
            with _hanging():
                target.read(folder)
        except target.own as error:
            counts["refused"] += 1
            if len(str(error)) > MAX_MESSAGE:
                problems["message"] = f"a message of {len(str(error))} characters: {str(error)[:200]}"
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "lora_retriever" in f.filename or "peft_composition" in f.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"
            shown = repr(content) if len(content) < 400 else f"{content[:200]!r}… ({len(content)} bytes)"
            said = str(error)[:300]
            problems.setdefault(
                f"{type(error).__name__} {where}", f"{type(error).__name__} at {where}: {said}; {shown}"
            )

    try:
        read()
    finally:
        path.write_bytes(sound)
    return counts["files"], counts["refused"], list(problems.values())


def mutated(target: Target, sound: bytes) -> st.SearchStrategy[bytes]:
    """Strategies for a spoilt file: values exchanged, bytes changed, or both."""
    changed = edited_bytes(sound)
    if target.is_json:
        return edited_json(sound) | changed
    if target.has_header:
        (length,) = struct.unpack("<Q", sound[:8])
        header, rest = sound[8 : 8 + length], sound[8 + length :]
        headers = edited_json(header) | edited_bytes(header)
        return headers.map(lambda new: struct.pack("<Q", len(new)) + new + rest) | changed
    return changed


@st.composite
def edited_bytes(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes of a file with a few pieces written over, put in, taken out or repeated."""
    content = sound
    for _ in range(draw(st.integers(1, 4))):
        # Most of a large file is data whose meaning no reader checks, so the beginning is changed more often.
        end = draw(st.sampled_from([len(content), min(len(content), 600)]))
        start = draw(st.integers(0, end))
        length = draw(st.integers(0, 40))
        piece = draw(st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=6))
        kind = draw(st.sampled_from(["over", "in", "out", "again", "cut"]))
        if kind == "over":
            content = content[:start] + piece + content[start + len(piece) :]
        elif kind == "in":
            content = content[:start] + piece + content[start:]
        elif kind == "out":
            content = content[:start] + content[start + length :]
        elif kind == "again":
            content = content[: start + length] + content[start:]
        else:
            content = content[:start]
    return content


@st.composite
def edited_json(draw: st.DrawFn, sound: bytes) -> bytes:
    """A JSON file with some values exchanged or removed, or keys renamed or added."""
    content = json.loads(sound)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["value", "value", "remove", "rename", "add"]))
        value = draw(VALUES)
        if kind == "remove":
            del holder[key]
        elif isinstance(holder, list) or kind == "value":
            holder[key] = value
        else:
            holder[draw(TEXTS)] = holder.pop(key) if kind == "rename" else value
    return json.dumps(content).encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object within, with every index or key, but not more than a few hundred."""
    open_values, found = [content], 0
    while open_values and found < 300:
        value = open_values.pop(0)
        keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
        for key in keys:
            yield value, key
            found += 1
            open_values.append(value[key])


@contextmanager
def _hanging() -> Iterator[None]:
    """Raise `HangError` in a reader that takes too long. In a reader written in C, the error is raised when the reader
    returns."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise HangError(f"no result after {HANGS_AFTER} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
