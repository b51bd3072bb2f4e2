"""Bad results folders, indices and embeddings, and bad arguments."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from campaign.inputs import RUN, Case, Spoil, put, put_json, replaced_by, together

LINE = {
    "id": 0, "inputs": "a", "targets": "b", "task": "t", "domain": "d", "metric": "em", "predicted_answer": "b",
    "adapters": [], "weights": [], "scores": [],
}  # fmt: skip
RECORD: dict[str, Any] = {"run": "base", "configuration": {"method": {}}, "finished": True, "rows": 1}
SUMMARIZE, REPORT = ("summarize", "{b}/results"), ("report", "{b}/results")
JSONL, META = "results/base.jsonl", "results/base.meta.json"
RUN_BASE = (*RUN[:-1], "base")


def results(lines: Any = None, record: Any = None) -> Spoil:
    """A results folder with one run: its lines, and its record. A text is written unchanged."""
    content = [LINE] if lines is None else lines
    text = content if isinstance(content, str) else "".join(json.dumps(line) + "\n" for line in content)
    about = RECORD if record is None else record
    return together(put(JSONL, text), put(META, about if isinstance(about, str) else json.dumps(about)))


def changed(**changes: Any) -> list[dict[str, Any]]:
    """Two lines, of which the second is changed; a field of value `...` is left out."""
    line = {**LINE, "id": 1, **changes}
    return [LINE, {name: value for name, value in line.items() if value is not ...}]


RECORDS: dict[str, Any] = {
    "null": "null", "a list": "[]", "a number": "5", "empty": "", "cut off": '{"run": "base", ',
    "deep": '{"a":' * 50_000,
    "5,000 digits": '{"rows": ' + "7" * 5000 + "}", "no configuration": {"run": "base"},
    "a configuration of another shape": {"run": "base", "configuration": 5},
    "another run's": {**RECORD, "run": "mixture"}, "another configuration's": RECORD,
    "not UTF-8": "\udcff",
}  # fmt: skip
LINES: dict[str, tuple[Any, str]] = {
    "no answer": (changed(predicted_answer=...), "predicted_answer"),
    "an answer that is a number": (changed(predicted_answer=5), "predicted_answer"),
    "no task": (changed(task=...), "task"),
    "no targets": (changed(targets=...), "targets"),
    "an id that is a text": (changed(id="one"), "id"),
    "weights of texts": (changed(adapters=["a"], weights=["x"], scores=[1]), "weights"),
    "adapters that are no list": (changed(adapters=5), "adapters"),
    "an unknown metric": (changed(metric="bm25"), "bm25"),
    "a metric of its own": (changed(metric="./m.py"), "m.py"),
    "another metric of the task": (changed(metric="rouge"), "t"),
    "another domain of the task": (changed(domain="e"), "t"),
    "a row twice with another answer": ([LINE, {**LINE, "predicted_answer": "c"}], "0"),
    "garbage in the middle": (json.dumps(LINE) + "\n%%%\n" + json.dumps({**LINE, "id": 1}) + "\n", "base"),
    "a torn last line": (json.dumps(LINE) + "\n" + json.dumps(LINE)[:30], "base"),
    "5,000 digits": ('{"id": ' + "7" * 5000 + "}\n", "base"),
    "deep": ("[" * 50_000 + "]" * 50_000 + "\n", "base"),
    "NUL bytes": ("\0" * 4000, "base"),
    "empty": ("", "base"),
}


def folders() -> Iterator[Case]:
    """Bad results folders, for summarize, report and a run."""
    for name, (lines, says) in LINES.items():
        for command in (SUMMARIZE, REPORT) if name in ("no answer", "deep") else (SUMMARIZE,):
            yield Case("results", f"{command[0]}: {name}", results(lines), (says,), command)
    for name, record in RECORDS.items():
        yield Case(
            "results", f"run: record {name}", results(record=record), ("base.meta.json|configuration",), RUN_BASE
        )
    for name in ("null", "a list", "cut off", "deep", "5,000 digits", "empty"):
        spoil = results(record=RECORDS[name])
        yield Case("results", f"summarize: record {name}", spoil, ("base",), SUMMARIZE)
    for kind in ("folder", "pipe", "circle of links", "dangling link", "/dev/zero"):
        spoil = together(results(), replaced_by(JSONL, kind))
        yield Case("results", f"run: rows {kind}", spoil, ("base",), RUN_BASE)
        yield Case("results", f"summarize: rows {kind}", spoil, ("results",), SUMMARIZE)
        other = together(results(), replaced_by(META, kind))
        yield Case("results", f"run: record {kind}", other, ("base",), RUN_BASE)
        lock = together(results(), replaced_by("results/.lock", kind))
        if kind != "circle of links":
            yield Case("results", f"run: lock {kind}", lock, (".lock|base",), RUN_BASE)
    yield Case("results", "run: rows without a record", put_json(JSONL, LINE), ("base.meta.json",), RUN_BASE)
    yield Case("results", "summarize: no folder", put("x", ""), ("results",), SUMMARIZE)
    yield Case("results", "summarize: a file", put("results", ""), ("results",), SUMMARIZE)
    yield Case("results", "summarize: nothing in it", put("results/x.txt", ""), ("results",), SUMMARIZE)
    yield Case("results", "run: a file", put("results", ""), ("results",), RUN_BASE)
    yield Case("results", "report: no folder", put("x", ""), ("results",), REPORT)
    leaks = (*SUMMARIZE, "--without-leaks")
    yield Case("results", "summarize: the pool is not known", results(), ("pool",), leaks)
    yield Case(
        "results", "compare with a run that is not there", results(), ("nowhere",), (*SUMMARIZE, "--versus", "nowhere")
    )


def index_file(metadata: dict[str, Any] | None = None, **arrays: Any) -> Spoil:
    """An index file of two adapters with other metadata or arrays; an array of None is left out."""
    made: dict[str, Any] = {"samples": np.ones((4, 3), np.float32), "counts": np.array([2, 2]), **arrays}
    about = {"names": '["a", "b"]', "scorer": "cosine", **(metadata or {})}
    content = {name: array for name, array in made.items() if array is not None}
    return put("index/index.safetensors", save(content, {n: t for n, t in about.items() if t is not None}))


def private_index(metadata: dict[str, Any] | None = None, **arrays: Any) -> Spoil:
    """An index file without samples."""
    constants = {"constants": '{"temperature": 1.0}', "scorer": "discriminant"}
    made = {"samples": None, "means": np.eye(2, 3, dtype=np.float32), "scatter": np.eye(3)}
    return index_file({**constants, **(metadata or {})}, **{**made, **arrays})


INDICES: dict[str, Spoil] = {
    "no folder": put("x", ""),
    "empty": put("index/index.safetensors", b""),
    "a Git LFS pointer": put("index/index.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
    "a folder": together(put("index/x", ""), replaced_by("index/index.safetensors", "folder")),
    "a pipe": together(put("index/x", ""), replaced_by("index/index.safetensors", "pipe")),
    "no names": index_file({"names": None}),
    "names a number": index_file({"names": "5"}),
    "names of numbers": index_file({"names": "[1, 2]"}),
    "names twice": index_file({"names": '["a", "a"]'}),
    "names too many": index_file({"names": '["a", "b", "c"]'}),
    "names deep": index_file({"names": "[" * 50_000 + "]" * 50_000}),
    "names of 5,000 digits": index_file({"names": "[" + "7" * 5000 + "]"}),
    "an unknown scorer": index_file({"scorer": "bm25"}),
    "no counts": index_file(counts=None),
    "counts too large": index_file(counts=np.array([2, 200])),
    "counts negative": index_file(counts=np.array([-2, 6])),
    "counts zero": index_file(counts=np.array([0, 4])),
    "counts fractions": index_file(counts=np.array([1.5, 2.5])),
    "counts of two dimensions": index_file(counts=np.ones((2, 2), np.int64)),
    "samples NaN": index_file(samples=np.full((4, 3), np.nan, np.float32)),
    "samples of one dimension": index_file(samples=np.ones(4, np.float32)),
    "texts that are no JSON": index_file({"scorer": "hybrid"}, texts=np.frombuffer(b"{broken", np.uint8)),
    "texts too few": index_file({"scorer": "hybrid"}, texts=np.frombuffer(b'["a"]', np.uint8)),
    "texts of numbers": index_file({"scorer": "hybrid"}, texts=np.frombuffer(b"[1, 2, 3, 4]", np.uint8)),
    "means NaN": private_index(means=np.full((2, 3), np.nan, np.float32)),
    "means too many": private_index(means=np.ones((3, 3), np.float32)),
    "scatter NaN": private_index(scatter=np.full((3, 3), np.nan)),
    "scatter of another shape": private_index(scatter=np.eye(2)),
    "constants a list": private_index({"constants": "[1]"}),
    "constants of texts": private_index({"constants": '{"temperature": "hot"}'}),
    "no constants": private_index({"constants": None}),
    "a private index of a scorer that needs samples": private_index({"scorer": "hybrid"}),
}


def indices() -> Iterator[Case]:
    """Bad indices, read by the report of a good results folder."""
    for name, spoil in INDICES.items():
        command = (*REPORT, "--index", "{b}/index")
        good = results([LINE], {**RECORD, "configuration": {"method": {"name": "base"}}})
        yield Case("index", name, together(good, spoil), ("index",), command)


def zipped(**members: bytes) -> bytes:
    """A file of arrays. `members` take the place of right members, and are written unchanged."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, content in {**_members(), **members}.items():
            if content:
                file.writestr(f"{name}.npy", content)
    return made.getvalue()


def array(content: Any, allow_pickle: bool = False) -> bytes:
    """The bytes of a numpy file."""
    made = io.BytesIO()
    np.save(made, content, allow_pickle=allow_pickle)
    return made.getvalue()


def _members() -> dict[str, bytes]:
    return {
        "names": array(np.array(["a", "b"])), "pool": array(np.ones((2, 2, 3), np.float32)),
        "tasks": array(np.array(["a", "b"])), "queries": array(np.ones((2, 3), np.float32)),
    }  # fmt: skip


def _terabytes() -> bytes:
    content = array(np.ones((2, 2, 3), np.float32))
    return content.replace(b"(2, 2, 3)", b"(1048576, 1048576, 3)").replace(b" " * 14 + b"\n", b"\n")


def _flagged(flag: int, method: int) -> bytes:
    """A file whose first member claims to be encrypted (flag 1), or claims a compression method that does not exist."""
    content = bytearray(zipped())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        content[place + at] |= flag
        content[place + at + 2] = method
    return bytes(content)


EMBEDDINGS: dict[str, bytes] = {
    "empty": b"",
    "a text": b"embeddings",
    "one array alone": array(np.ones((2, 3))),
    "cut off": zipped()[:300],
    "encrypted": _flagged(1, 0),
    "packed in another manner": _flagged(0, 99),
    "terabytes": zipped(pool=_terabytes()),
    "pickled objects": zipped(names=array(np.array([{"a": 1}, None]), allow_pickle=True)),
    "no queries": zipped(queries=b""),
    "NaN": zipped(queries=array(np.full((2, 3), np.nan, np.float32))),
    "NaN in the pool": zipped(pool=array(np.full((2, 2, 3), np.inf, np.float32))),
    "another dimension": zipped(queries=array(np.ones((2, 4), np.float32))),
    "integers": zipped(queries=array(np.ones((2, 3), np.int64))),
    "complex numbers": zipped(queries=array(np.ones((2, 3), np.complex64))),
    "names too many": zipped(names=array(np.array(["a", "b", "c"]))),
    "names twice": zipped(names=array(np.array(["a", "a"]))),
    "names of numbers": zipped(names=array(np.array([1, 2]))),
    "a task without an adapter": zipped(tasks=array(np.array(["a", "z"]))),
    "an empty array": zipped(tasks=array(np.array([], dtype="U1")), queries=array(np.ones((0, 3), np.float32))),
    "a header that is no literal": zipped(pool=b"\x93NUMPY\x01\x00\x0e\x00__import__('o')\n"),
    "a header of another version": zipped(pool=b"\x93NUMPY\x09\x00\x02\x00{}"),
    "numbers too large for float32": zipped(queries=array(np.full((2, 3), 1e300))),
}


def embeddings() -> Iterator[Case]:
    """Bad files of embeddings."""
    command = ("retrieval", "--scorer", "cosine", "--embeddings", "{b}/e.npz")
    for name, content in EMBEDDINGS.items():
        yield Case("embeddings", name, put("e.npz", content), ("e.npz",), command)
    for kind in ("nothing", "folder", "pipe", "/dev/zero", "/dev/null"):
        yield Case("embeddings", kind, replaced_by("e.npz", kind), ("e.npz",), command)


PROFILE = ("--profile", "{b}/mine.yaml")
ROWS, POOL, BASE, ENCODER = "{b}/rows.json", "{b}/pool.json", "{b}/base", "{b}/encoder"
ONE = "{b}/adapters/passive"
ARGUMENTS: dict[tuple[str, ...], str] = {
    (): "COMMAND",
    ("fly",): "fly",
    ("run", "--fly"): "--fly",
    ("run", "--profile", "nothing"): "nothing",
    ("run", "--profile", ""): "profile",
    ("run", "--profile", "x" * 5000): "profile",
    ("run", "--profile", "a\0b"): "profile",
    ("run", "--profile", "{b}"): "spoilt",
    ("run", *PROFILE, "--only", "bases"): "bases",
    ("run", *PROFILE, "--only", ""): "only",
    ("run", *PROFILE, "--only", "nowhere:thing"): "nowhere",
    ("run", *PROFILE, "--only", "os:system"): "os:system",
    ("run", *PROFILE, "--only", "a:b:c"): "a:b:c",
    ("run", *PROFILE, "--limit", "0"): "1 or more",
    ("run", *PROFILE, "--limit", "many"): "many",
    ("run", *PROFILE, "--limit", "1e3"): "1e3",
    ("run", *PROFILE, "--results", "/proc/nowhere"): "/proc/nowhere",
    ("run", *PROFILE, "--results", "/dev/null"): "/dev/null",
    ("run", *PROFILE, "--results", "{b}/rows.json"): "rows.json",
    ("run", *PROFILE, "--results", "{b}/" + "x" * 300): "results folder",
    ("run", *PROFILE, "--results", "a\0b"): "results folder",
    ("run", *PROFILE, "--sweep", "k"): "k",
    ("run", *PROFILE, "--sweep", "k="): "k",
    ("run", *PROFILE, "--sweep", "k=0"): "k",
    ("run", *PROFILE, "--sweep", "k=a"): "k",
    ("run", *PROFILE, "--sweep", "speed=1"): "speed",
    ("run", *PROFILE, "--sweep", "temperature=nan"): "temperature",
    ("run", *PROFILE, "--sweep", "scorer=bm25"): "bm25",
    ("run", *PROFILE, "--sweep", "k=1", "--sweep", "k=2"): "k",
    ("run", *PROFILE, "--only", "mixture", "--sweep", "k=99"): "99",
    ("run", *PROFILE, "--answer-anew", "--keep-answers"): "not allowed",
    ("doctor", "--profile", "nothing"): "nothing",
    ("summarize", "/nowhere"): "/nowhere",
    ("summarize", "{b}", "--format", "pdf"): "pdf",
    ("summarize", "{b}", "--kinds", "{b}/rows.json"): "rows.json|{b}",
    ("summarize", "a\0b"): "results folder",
    ("summarize", ""): "results|folder|no ",
    ("report", "/nowhere"): "/nowhere",
    ("audit", "{b}/nowhere.json", "--pool", POOL): "nowhere.json",
    ("audit", ROWS): "--pool",
    ("audit", ROWS, "--pool", POOL, "--tokenizer", "{b}/adapters"): "adapters",
    ("audit", ROWS, "--pool", POOL, "--json", "/proc/x.json"): "/proc/x.json",
    ("audit", ROWS, "--pool", POOL, "--json", "{b}"): "spoilt",
    ("audit", ROWS, "--pool", POOL, "--tokenizer", BASE, "--template", "nothing"): "nothing",
    ("audit", ROWS, "--pool", POOL, "--tokenizer", BASE, "--max-prompt-tokens", "2"): "max",
    ("index", "--pool", POOL, "--encoder", ENCODER): "--out",
    ("index", "--pool", POOL, "--encoder", "./nowhere", "--out", "{b}/i"): "nowhere",
    ("index", "--pool", POOL, "--encoder", ENCODER, "--scorer", "bm25", "--out", "{b}/i"): "bm25",
    ("index", "--pool", POOL, "--encoder", ENCODER, "--private", "--out", "{b}/i"): "private",
    ("index", "--pool", POOL, "--encoder", ENCODER, "--out", "{b}/rows.json"): "rows.json",
    ("index", "--pool", POOL, "--encoder", ENCODER, "--out", "/proc/x"): "/proc/x",
    ("retrieval", "--scorer", "cosine"): "--encoder",
    ("retrieval", "--scorer", "bm25", "--encoder", ENCODER, "--pool", POOL, "--inputs", ROWS): "bm25",
    ("retrieval", "--scorer", "cosine", "--encoder", ENCODER, "--pool", POOL): "--inputs",
    ("retrieval", "--scorer", "cosine", "--encoder", ENCODER, "--pool", POOL, "--inputs", "{b}/x.json"): "x.json",
    (
        "retrieval",
        "--scorer",
        "cosine",
        "--encoder",
        ENCODER,
        "--pool",
        POOL,
        "--inputs",
        ROWS,
        "--samples",
        "0",
    ): "1 or",
    ("retrieval", "--scorer", "hybrid", "--embeddings", "{b}/e.npz"): "--pool",
    ("compose", "--base", BASE, "--adapter", "a", "--out", "{b}/o"): "LOCATION=WEIGHT",
    ("compose", "--base", BASE, "--adapter", f"{ONE}=x", "--out", "{b}/o"): "WEIGHT|x",
    ("compose", "--base", BASE, "--adapter", f"{ONE}=nan", "--out", "{b}/o"): "nan|finite",
    ("compose", "--base", BASE, "--adapter", f"{ONE}=1e300", "--out", "{b}/o"): "1e300|finite|infinity|large|passive",
    ("compose", "--base", BASE, "--adapter", "./nowhere=1", "--out", "{b}/o"): "nowhere",
    ("compose", "--base", BASE, "--adapter", f"{ONE}=1", "--out", "{b}/rows.json"): "rows.json",
    ("compose", "--base", "./nowhere", "--adapter", f"{ONE}=1", "--out", "{b}/o"): "nowhere",
    ("compose", "--base", BASE, "--adapter", f"{ONE}=1", "--mode", "both", "--out", "{b}/o"): "both",
    ("lorahub", "--base", BASE, "--out", "{b}/o"): "--examples",
    ("lorahub", "--base", BASE, "--adapters", "{b}/nowhere", "--examples", ROWS, "--out", "{b}/o"): "nowhere",
    ("lorahub", "--base", BASE, "--adapters", "{b}/base", "--examples", ROWS, "--out", "{b}/o"): "base",
    ("lorahub", "--base", BASE, "--adapter", ONE, "--examples", "{b}/x.json", "--out", "{b}/o"): "x.json",
    ("lorahub", "--base", BASE, "--adapter", ONE, "--examples", ROWS, "--l1", "nan", "--out", "{b}/o"): "l1",
    ("lorahub", "--base", BASE, "--adapter", ONE, "--examples", ROWS, "--count", "0", "--out", "{b}/o"): "1 or more",
    ("lorahub", "--base", BASE, "--adapter", ONE, "--examples", ROWS, "--seed", "-1", "--out", "{b}/o"): "seed",
    ("lorahub", "--base", BASE, "--adapter", ONE, "--examples", ROWS, "--out", "{b}/rows.json"): "rows.json",
    ("methods", "--profile", "nothing"): "nothing|profile",
}


def arguments() -> Iterator[Case]:
    """Bad arguments."""
    for command, says in ARGUMENTS.items():
        shown = " ".join(command).replace("\0", "NUL")
        yield Case("arguments", shown if len(shown) < 160 else f"{shown[:60]}…", _nothing, (says,), command)


def _nothing(folder: Path) -> None:
    """The benchmark itself is good."""
