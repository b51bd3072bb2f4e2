"""Bad rows, pools and profiles."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from collections.abc import Iterator
from typing import Any

from campaign.inputs import RUN, Case, change, fields, profile_with, put, put_json, replaced_by, without

ROWS, POOL, PROFILE = "rows.json", "pool.json", "mine.yaml"
SURROGATE = "half \ud83d"
ROW = {"inputs": "a", "targets": "b", "task": "people_qa", "domain": "d", "metric": "em"}
LINE = json.dumps(ROW)
SPECIAL = ("folder", "pipe", "circle of links", "dangling link", "nothing", "/dev/zero", "/dev/null", "/dev/urandom")

FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": (b"", "empty"),
    "white space": (" \n\t\n", "empty"),
    "byte order mark alone": (b"\xef\xbb\xbf", "empty"),
    "NUL bytes": (bytes(5000), "NUL"),
    "random bytes": (bytes(range(256)) * 20, "UTF-8|NUL"),
    "UTF-16": (f"[{LINE}]".encode("utf-16"), "UTF-16"),
    "UTF-32": (f"[{LINE}]".encode("utf-32"), "UTF-32|UTF-16"),
    "Latin-1": ('[{"inputs": "Müller"}]'.encode("latin-1"), "not UTF-8"),
    "gzip cut off": (gzip.compress(LINE.encode() * 50)[:40], "gzip"),
    "gzip damaged": (b"\x1f\x8b" + bytes(range(200)), "gzip"),
    "gzip twice": (gzip.compress(gzip.compress(LINE.encode())), "gzip"),
    "gzip of nothing": (gzip.compress(b""), "empty"),
    "gzip bomb": (gzip.compress(bytes(1 << 20)) * 300, "larger than"),
    "bzip2": (bz2.compress(LINE.encode()), "bzip2"),
    "xz": (lzma.compress(LINE.encode()), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(1, 60)), "zstd"),
    "zip": (b"PK\x03\x04" + bytes(range(1, 60)), "zip|ZIP|archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(range(1, 60)), "7z"),
    "Parquet": (b"PAR1" + bytes(range(1, 60)) + b"PAR1", "damaged"),
    "Arrow": (b"ARROW1\0\0" + bytes(range(1, 60)), "damaged"),
    "SQLite": (b"SQLite format 3\0" + bytes(range(1, 60)), "SQLite"),
    "pickle": (pickle.dumps([ROW], 4), "pickle"),
    "numpy": (b"\x93NUMPY\x01\0" + bytes(range(1, 60)), "numpy"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    "Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS"),
    "CSV": ("inputs,targets,task,domain,metric\na,b,people_qa,em\n", "row 1, .*4 cells"),
    "TSV": ("inputs\ttargets\ttask\tinputs\n", "column 'inputs' is there more than once"),
    "HTML": ("<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "XML": ('<?xml version="1.0"?><rows/>', "XML"),
    "YAML": ("- inputs: a\n  targets: b\n", "JSON|YAML"),
    "Python": ("[{'inputs': 'a', 'targets': 'b'}]", "JSON|quotes|Python"),
    "a comment": ("// rows\n[" + LINE + "]", "JSON|line 1"),
    "a trailing comma": (f"[{LINE},]", "line 1"),
    "cut off": (f"[{LINE}, {LINE[:20]}", "line 1"),
    "a broken line of many": (f"{LINE}\n{LINE}\n{{broken\n", "line 3"),
    "text after the list": (f"[{LINE}] and more", "line 1"),
    "NaN": ('[{"inputs": NaN}]', "NaN"),
    "Infinity": ('[{"inputs": -Infinity}]', "Infinity"),
    "5,000 digits": (f'[{{"inputs": {"7" * 5000}}}]', "digits"),
    "deep lists": ("[" * 100_000 + "]" * 100_000, "levels|nest"),
    "deep objects": ('{"a":' * 50_000 + "1" + "}" * 50_000, "levels|nest"),
    "a key twice": (f'[{LINE[:-1]}, "task": "other"}}]', "task"),
    "a number": ("5", "object|row"),
    "a text": ('"rows"', "object|row"),
    "null": ("null", "object|row"),
    "a list of lists": ("[[1]]", "row 1"),
    "a list with null": (f"[{LINE}, null]", "row 2"),
    "an empty list": ("[]", "no rows|empty"),
    "an empty list in an object": ('{"data": []}', "no rows|empty|field|expected"),
    "two lists in an object": (f'{{"train": [{LINE}], "test": [{LINE}]}}', "train"),
    "half of a surrogate pair": (json.dumps([{**ROW, "inputs": SURROGATE}]), "surrogate"),
    "one long line that is no JSON": ("x" * 3_000_000, "line 1|JSON"),
}  # fmt: skip
"""Contents of a file of rows that are no rows, each with a part of the message."""

WRONG_VALUES: dict[str, Any] = {
    "a number": 5,
    "null": None,
    "a list": ["a"],
    "an object": {"a": 1},
    "a truth value": True,
    "nothing": "",
    "a blank": " \n",
    "NUL": "a\0b",
    "half of a surrogate pair": SURROGATE,
    "1,000,001 characters": "x" * 1_000_001,
}
RIGHT_TARGETS = ("a number", "a list", "nothing", "a blank")
"""Values that are wrong for other fields, and right for targets."""


def rows() -> Iterator[Case]:
    """Bad files of rows, and bad rows."""
    for name, (content, says) in FILES.items():
        yield Case("rows", name, put(ROWS, content), (ROWS, says))
    for kind in SPECIAL:
        yield Case("rows", kind, replaced_by(ROWS, kind), ("cannot be read|empty|no usable path",))
    for field in ROW:
        yield Case("rows", f"no {field}", without(ROWS, 1, field), (f"{ROWS}: row 2", field))
        for what, value in WRONG_VALUES.items():
            if field != "targets" or what not in RIGHT_TARGETS:
                yield Case("rows", f"{field} is {what}", fields(ROWS, 1, **{field: value}), (f"{ROWS}: row 2", field))
    for what, value in {"[]": [], "[null]": [None], "[[a]]": [["a"]], "[a, NUL]": ["a", "\0"]}.items():
        yield Case("rows", f"targets are {what}", fields(ROWS, 1, targets=value), (f"{ROWS}: row 2", "targets"))
    for metric in ("bleurt", "exact match", "EM"):
        yield Case("rows", f"metric {metric}", fields(ROWS, 1, metric=metric), (f"{ROWS}: row 2", metric))
    for metric in ("./m.py", "../../m.py", "/etc/passwd", "~/m.py", "./", "/dev/zero", "./nowhere/m.py"):
        yield Case("rows", f"metric {metric}", fields(ROWS, 1, metric=metric), (f"{ROWS}: row 2", metric))
    yield Case("rows", "a metric that is there and not allowed", _metric, (f"{ROWS}: row 2", "./m.py"))
    yield Case("rows", "two metrics of a task", fields(ROWS, 1, metric="rouge"), ("people_qa", "metrics"))
    yield Case("rows", "two domains of a task", fields(ROWS, 1, domain="other"), ("people_qa", "domains"))
    for task in ("People_QA", "people_qa ", "ｐeople_qa", "people\u200b_qa"):
        yield Case("rows", f"task {task!a} beside people_qa", fields(ROWS, 1, task=task), ("differ only",))
    yield Case(
        "rows",
        "a task without an adapter",
        fields(ROWS, 1, task="unheard of"),
        ("unheard of",),
        statuses=(1,),
    )


def pools() -> Iterator[Case]:
    """Bad files of pools, and bad entries."""
    for name in ("empty", "NUL bytes", "UTF-16", "gzip cut off", "Git LFS pointer", "CSV", "a trailing comma", "NaN",
                 "5,000 digits", "deep lists", "a number", "a list with null", "an empty list", "pickle"):  # fmt: skip
        content, says = FILES[name]
        yield Case("pool", name, put(POOL, content), (POOL, "" if name == "a list with null" else says))
    for kind in SPECIAL:
        yield Case("pool", kind, replaced_by(POOL, kind), ("cannot be read|empty|no usable path",))
    for field in ("model_name", "domain", "sample"):
        yield Case("pool", f"no {field}", without(POOL, 1, field), (f"{POOL}: row 2", field))
    for what, value in WRONG_VALUES.items():
        yield Case("pool", f"name is {what}", fields(POOL, 1, model_name=value), (POOL, "row 2", "model_name"))
    for name in ("../../base", "/etc", "..", ".", "a/../../b", "~", "~root", "x" * 300, "a//b", "./x"):
        yield Case("pool", f"name {name[:20]}", fields(POOL, 1, model_name=name), (ascii(name)[1:20], "name"))
    yield Case("pool", "a name twice", change(POOL, lambda pool: [*pool, pool[0]]), (POOL, "more than once"))
    yield Case("pool", "names that look alike", fields(POOL, 1, model_name="People_qa"), ("differ only",))
    samples: dict[str, Any] = {
        "null": None, "empty": [], "a text": "a", "an object": {"inputs": "a", "targets": "b"},
        "a list of texts": ["a"],
        "a list of null": [None], "without inputs": [{"targets": "b"}], "without targets": [{"inputs": "a"}],
        "with empty inputs": [{"inputs": "", "targets": "b"}], "with NUL": [{"inputs": "a\0", "targets": "b"}],
        "with half a surrogate pair": [{"inputs": "a", "targets": SURROGATE}],
        "with empty targets": [{"inputs": "a", "targets": []}],
    }  # fmt: skip
    for what, value in samples.items():
        yield Case("pool", f"sample {what}", fields(POOL, 1, sample=value), (f"{POOL}: row 2", "sample"))
    yield Case("pool", "no adapter in its folder", fields(POOL, 1, model_name="nowhere"), ("nowhere",))


PROFILE_FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "empty"),
    "a comment": ("# nothing\n", "fields"),
    "a list": ("- a\n", "list"),
    "a text": ("tiny", "str"),
    "broken": ("base: {location: [", "YAML"),
    "a tab": ("base:\n\tlocation: x\n", "line 2"),
    "a tag": ("base: !!python/object/apply:os.system ['true']\n", "tag"),
    "a tag of its own": ("base: !secret x\n", "tag"),
    "aliases upon aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "alias",
    ),
    "an alias of itself": ("a: &a [*a]\n", "levels|alias|recursive"),
    "a key twice": ("seed: 1\nseed: 2\n", "seed"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "levels"),
    "a number of 5,000 digits": ("seed: " + "7" * 5000, "number"),
    "not UTF-8": (b"note: M\xfcller\n", "UTF-8"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "UTF-16"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "document"),
    "a key that is a number": ("1: 2\n", "name"),
    "a key that is a list": ("? [a]\n: 2\n", "name"),
    "very long": ("note: " + "x" * 400_000, "longer"),
    "JSON cut off": ('{"base": {"location"', "YAML"),
    "an unknown anchor": ("a: *b\n", "alias|anchor"),
    "a control character": ("note: \x07\n", "YAML"),
}

FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"modle": 1}, "modle"),
    "an unknown field of a section": ({"generation": {"beams": 4}}, "generation.beams"),
    "folder": ({"folder": "/"}, "folder"),
    "k 0": ({"retrieval": {"k": 0}}, "retrieval.k"),
    "k -1": ({"retrieval": {"k": -1}}, "retrieval.k"),
    "k true": ({"retrieval": {"k": True}}, "retrieval.k"),
    "k 1.5": ({"retrieval": {"k": 1.5}}, "retrieval.k"),
    "k a text": ({"retrieval": {"k": "three"}}, "retrieval.k"),
    "k 10^30": ({"retrieval": {"k": 10**30}}, "retrieval.k"),
    "temperature 0": ({"retrieval": {"temperature": 0}}, "retrieval.temperature"),
    "temperature NaN": ({"retrieval": {"temperature": float("nan")}}, "temperature"),
    "temperature infinite": ({"retrieval": {"temperature": float("inf")}}, "temperature"),
    "scorer": ({"retrieval": {"scorer": "bm25"}}, "bm25"),
    "retrieval a list": ({"retrieval": [1]}, "retrieval"),
    "batch_size 0": ({"generation": {"batch_size": 0}}, "generation.batch_size"),
    "batch_tokens -5": ({"generation": {"batch_tokens": -5}}, "generation.batch_tokens"),
    "max_prompt_tokens 10^18": ({"generation": {"max_prompt_tokens": 10**18}}, "generation.max_prompt_tokens"),
    "max_prompt_tokens 3": ({"generation": {"max_prompt_tokens": 3}}, "max_prompt_tokens"),
    "max_new_tokens 0": ({"generation": {"max_new_tokens": 0}}, "generation.max_new_tokens"),
    "pad_token_id -1": ({"generation": {"pad_token_id": -1}}, "pad_token_id"),
    "pad_token_id beyond the vocabulary": ({"generation": {"pad_token_id": 10**6}}, "pad_token_id"),
    "template without inputs": ({"generation": {"template": "Say it"}}, "template"),
    "template unknown": ({"generation": {"template": "alpacca"}}, "template"),
    "template a number": ({"generation": {"template": 5}}, "template"),
    "threads 0": ({"threads": 0}, "threads"),
    "threads 100000": ({"threads": 100_000}, "threads"),
    "seed -1": ({"seed": -1}, "seed"),
    "seed 2^40": ({"seed": 2**40}, "seed"),
    "seed a date": ({"seed": "2024-01-01"}, "seed"),
    "dtype": ({"dtype": "int8"}, "dtype"),
    "device unknown": ({"device": "gpu"}, "device"),
    "device cuda:99": ({"device": "cuda:99"}, "device"),
    "device meta": ({"device": "meta"}, "device"),
    "device empty": ({"device": ""}, "device"),
    "backend": ({"backend": "tpu"}, "backend"),
    "methods unknown": ({"methods": ["mixtur"]}, "methods|mixtur"),
    "methods a number": ({"methods": 5}, "methods"),
    "methods empty": ({"methods": []}, "methods"),
    "options of no method": ({"options": {"nothing": {"k": 1}}}, "nothing"),
    "options unknown": ({"options": {"lorahub": {"stepps": 1}}}, "stepps"),
    "option NaN": ({"options": {"lorahub": {"l1": float("nan")}}}, "l1"),
    "option negative": ({"options": {"lorahub": {"steps": -1}}}, "steps"),
    "option true": ({"options": {"lorahub": {"steps": True}}}, "steps"),
    "option of another type": ({"options": {"lorahub": {"steps": "many"}}}, "steps"),
    "options a list": ({"options": ["lorahub"]}, "options"),
    "name of a folder above": ({"name": "../../../x"}, "name"),
    "name absolute": ({"name": "/etc/x"}, "name"),
    "name empty": ({"name": ""}, "name"),
    "name too long": ({"name": "x" * 300}, "name"),
    "location empty": ({"base": {"location": ""}}, "base.location"),
    "location NUL": ({"base": {"location": "./a\0b"}}, "base.location"),
    "location of no user": ({"base": {"location": "~nosuchuser/x"}}, "base.location"),
    "location long": ({"base": {"location": "./" + "x" * 5000}}, "base.location"),
    "location of many folders": ({"base": {"location": "./" + "x/" * 3000}}, "base.location"),
    "location a number": ({"base": {"location": 5}}, "base.location"),
    "location that is not there": ({"base": {"location": "./nowhere"}}, "nowhere"),
    "location a file": ({"base": {"location": "./rows.json"}}, "rows.json"),
    "location a device": ({"base": {"location": "/dev/zero"}}, "/dev/zero"),
    "rows that are not there": ({"data": {"rows": "nowhere.json"}}, "nowhere.json"),
    "adapters without {adapter}": ({"adapters": {"location": "./adapters/passive"}}, "{adapter}"),
    "adapters' memory negative": ({"adapters": {"memory": -1}}, "adapters.memory"),
    "adapters' memory a word": ({"adapters": {"memory": "lots"}}, "adapters.memory"),
    "revision empty": ({"base": {"revision": ""}}, "revision"),
    "layout": ({"encoder": {"layout": "bert"}}, "layout"),
    "instruction a list": ({"encoder": {"instruction": ["a"]}}, "instruction"),
    "encoder's batch_size 0": ({"encoder": {"batch_size": 0}}, "batch_size"),
    "cache a word": ({"encoder": {"cache": "perhaps"}}, "cache"),
    "Ray's workers 0": ({"ray": {"workers": 0}}, "ray.workers"),
    "note a number": ({"note": 5}, "note"),
    "reuse_answers a word": ({"reuse_answers": "perhaps"}, "reuse_answers"),
    "metrics a number": ({"metrics": 5}, "metrics"),
    "no base": ({"base": None}, "base"),
    "encoder that is not there": ({"encoder": {"location": "./nowhere"}}, "nowhere"),
}


WARNED_OF = ("adapters without {adapter}",)
"""Fields with which a run is possible. The run says how it reads the fields."""


def profiles() -> Iterator[Case]:
    """Bad profiles."""
    for name, (content, says) in PROFILE_FILES.items():
        yield Case("profile", name, put(PROFILE, content), (PROFILE, says))
    for kind in SPECIAL:
        yield Case("profile", kind, replaced_by(PROFILE, kind), (PROFILE,))
    mixture = (*RUN[:-1], "mixture")  # `--only` in place of the profile's methods
    for name, (changes, says) in FIELDS.items():
        command = RUN[:-2] if "methods" in changes else mixture
        statuses = (0,) if name in WARNED_OF else (2,)
        yield Case("profile", f"field: {name}", profile_with(**changes), (says,), command, statuses)
    doctor = ("doctor", "--profile", "{b}/mine.yaml", "--results", "{b}/results")
    for name in ("max_prompt_tokens 10^18", "device cuda:99", "options unknown",
                 "location that is not there", "rows that are not there"):  # fmt: skip
        changes, says = FIELDS[name]
        yield Case("profile", f"doctor: {name}", profile_with(**changes), (says,), doctor)
    yield Case("profile", "rows of a gigabyte of aliases", put_json(PROFILE, {"options": {"a": "x" * 300_000}}), ())


def _metric(folder: Any) -> None:
    (folder / "m.py").write_text("raise SystemExit('the metric was run')\n", encoding="utf-8")
    fields(ROWS, 1, metric="./m.py")(folder)
