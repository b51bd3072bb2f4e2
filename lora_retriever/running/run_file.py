"""The files of one run: lines are appended while the run goes on, and put in order when the run is done.

`NAME.jsonl.partial` grows batch by batch, and each batch is on disk (fsync) before the next one. `NAME.meta.json`, the
run's record, is written first and says what the run is. When every row is there, the lines are put in the rows' order
and the file takes the name `NAME.jsonl`, in one atomic step. All state is in these files: whatever stopped a run, the
next start reads the files and goes on. A file is never continued under another configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.escaping import brief, for_shell, quoted
from lora_retriever.files import read_bytes, write_bytes, write_json
from lora_retriever.running.results_folder import EARLIER, writing_into

Line = dict[str, Any]

BYTE_ORDER_MARK = "\ufeff"
DIFFERENCE_LENGTH = 24
"""Maximum length of a value in a message that lists differences, in characters."""


class RunFile:
    """The answers of one run, on disk.

    Attributes:
        lines: the answered rows, by the rows' ids.
        stages: the file of the answers to procedures for rows that are not done (`running.stages`).
        recorded: the record that an earlier start wrote; empty if there was none.
    """

    def __init__(
        self,
        results: Path,
        name: str,
        configuration: dict[str, Any],
        changed_inputs: Callable[[Mapping[str, Any]], Sequence[str]] = lambda record: (),
    ) -> None:
        """Open a run that is new, begun or finished.

        Args:
            changed_inputs: gives the files that differ from a record's files, for the refusal of another configuration.

        Raises:
            UserError: the folder holds a run of this name with another configuration, or its files cannot be read.
        """
        self.name = name
        self.results = results
        self.path = results / f"{name}.jsonl"
        self.partial = results / f"{name}.jsonl.partial"
        self.stages = results / f"{name}.stages.partial"
        self.meta_path = results / f"{name}.meta.json"
        self.configuration = configuration
        self._changed_inputs = changed_inputs
        self.recorded = self._read_meta()
        try:
            self.lines, self._is_clean = _read(results, name)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def check_rows(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Drop lines that are no answers to the rows of the benchmark, such as another run's copied lines.

        Args:
            rows: the fields of each row, by the row's id. Lines of other ids, as under `--limit`, stay.
        """
        foreign = [
            id
            for id, line in self.lines.items()
            if any(_plain(line[field]) != _plain(value) for field, value in rows.get(id, {}).items() if field in line)
        ]
        for id in foreign:
            del self.lines[id]
        self._is_clean = self._is_clean and not foreign

    def is_finished(self, ids: Sequence[int]) -> bool:
        """Whether all of `ids` are answered, and the file and its record have their final form."""
        final = self.recorded.get("finished", False) and self.path.exists() and not self.partial.exists()
        return bool(final) and self._is_clean and not self.missing(ids)

    @property
    def has_answers(self) -> bool:
        """Whether an earlier start answered rows, or questions of procedures."""
        return bool(self.lines) or self.stages.exists()

    def missing(self, ids: Sequence[int]) -> list[int]:
        """The `ids` that have no answer yet, in their order."""
        return [id for id in ids if id not in self.lines]

    def append(self, lines: Sequence[Line]) -> None:
        """Add answered rows. When this function returns, the rows are on disk.

        Raises:
            FolderError: the file system does not take them.
        """
        data = encoded(lines)
        with writing_into(self.results):
            if self.path.exists():  # a finished file that lacks rows becomes a partial file again
                os.replace(self.path, self.partial)
            with self.partial.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self.lines.update({line["id"]: line for line in lines})

    def begin(self, meta: Mapping[str, Any]) -> None:
        """Write the record before the first row, and mend a file that an interruption or an editor left damaged.

        Raises:
            FolderError: the file system refuses to write.
        """
        with writing_into(self.results):
            write_json(self.meta_path, self._meta(meta))
            damaged = self.partial if self.partial.exists() else self.path
            if damaged.exists():
                data = encoded(self.lines.values())
                if damaged.read_bytes() != data:
                    write_bytes(damaged, data)

    def finish(self, ids: Sequence[int], meta: Mapping[str, Any]) -> None:
        """Put the rows in the order of `ids` under the run's name. Rows without an answer are left out.

        Raises:
            FolderError: the file system does not take them.
        """
        ordered = [self.lines[id] for id in ids if id in self.lines]
        with writing_into(self.results):
            write_bytes(self.path, encoded(ordered))
            self.partial.unlink(missing_ok=True)
            write_json(self.meta_path, self._meta(meta))

    def record(self, **fields: Any) -> None:
        """Add fields to the record of an earlier start.

        Raises:
            FolderError: the file system refuses to write.
        """
        self.recorded = {**self.recorded, **fields}
        with writing_into(self.results):
            write_json(self.meta_path, self.recorded)

    def set_aside(self) -> None:
        """Move the run's files to a folder of their own below `earlier`, so that the run begins anew.

        Raises:
            FolderError: the file system refuses to write.
        """
        with writing_into(self.results):
            record = read_bytes(self.meta_path)
            place = self._place_for(record)
            place.mkdir(parents=True, exist_ok=True)
            # The record is in both folders while the rows move: rows without their record would be of no use.
            write_bytes(place / self.meta_path.name, record)
            for path in (self.path, self.partial, self.stages):
                if path.exists():
                    os.replace(path, place / path.name)
            self.meta_path.unlink()
        self.recorded, self.lines = {}, {}

    def _without_unused(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """A recorded configuration without an encoder that this run does not use, which earlier versions recorded."""
        unused = {"encoder"} - self.configuration.keys()
        return {name: value for name, value in configuration.items() if name not in unused}

    def _all_paths(self) -> list[Path]:
        """The run's files. The file of stages is named only if the file exists, because most runs have none."""
        return [self.path, self.partial, *([self.stages] if self.stages.exists() else []), self.meta_path]

    def _place_for(self, record: bytes) -> Path:
        """The folder below `earlier` for this record, named by the time when the record was last written.

        So a move that was interrupted goes on in the same folder. Another record of this time has a folder of its own.
        """
        written = datetime.fromtimestamp(self.meta_path.stat().st_mtime, timezone.utc)
        name, number = written.strftime("%Y-%m-%dT%H-%M-%SZ"), 1
        place = self.results / EARLIER / name
        while self._is_taken(place, record):
            number += 1
            place = self.results / EARLIER / f"{name}-{number}"
        return place

    def _is_taken(self, place: Path, record: bytes) -> bool:
        """Whether a folder holds another record of this run's name, or rows that a move would overwrite."""
        kept = place / self.meta_path.name
        if kept.exists() and read_bytes(kept) != record:
            return True
        return any(path.exists() and (place / path.name).exists() for path in (self.path, self.partial, self.stages))

    def _meta(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()
        return {"run": self.name, "configuration_hash": digest, "configuration": self.configuration, **meta}

    def _read_meta(self) -> dict[str, Any]:
        """The record of an earlier start, empty if there was none."""
        remove = "rm -f " + " ".join(for_shell(str(path)) for path in self._all_paths())
        if not self.meta_path.exists():
            begun = [path for path in (self.path, self.partial, self.stages) if path.exists()]
            if begun:
                raise UserError(
                    f"{begun[0]} has no {self.meta_path.name} beside it, which would say what made it; "
                    "move it away, or choose another --results folder"
                )
            return {}
        try:
            meta: dict[str, Any] = json.loads(read_bytes(self.meta_path).decode("utf-8-sig"))
            differing = differences(self._without_unused(meta["configuration"]), self.configuration)
        except OSError as error:
            raise UserError(f"{self.meta_path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{self.meta_path}: is no record of a run ({type(error).__name__}: {error}). Choose another --results "
                f"folder, or start this run anew: {remove}"
            ) from error
        if meta.get("run", self.name) != self.name:
            raise UserError(
                f"{self.meta_path} is the record of the run {quoted(meta['run'])}, not of {self.name!r}: the file was "
                "copied, or the file system takes upper and lower case for the same. Choose another --results folder"
            )
        if differing:
            files = self._changed_inputs(meta)
            changed = f" The files that differ: {'; '.join(files)}." if files else ""
            raise UserError(
                f"{self.path} was made with another configuration: {'; '.join(differing)}.{changed} "
                f"Choose another --results folder, or start this run anew: {remove}"
            )
        return meta


def encoded(lines: Iterable[Line]) -> bytes:
    """Rows as JSON lines in UTF-8. Half of a surrogate pair, which UTF-8 cannot hold, becomes JSON's own escape."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "backslashreplace")


def read_lines(results: Path, name: str) -> dict[int, Line]:
    """The answered rows of a run on disk, by the rows' ids. Lines that are no rows are ignored.

    Raises:
        OSError: the file cannot be read.
    """
    return _read(results, name)[0]


def _read(results: Path, name: str) -> tuple[dict[int, Line], bool]:
    """The rows of a run, and whether its file holds these rows and nothing else.

    A half-written line is no row. Of two lines with the same id and other content, neither counts.
    """
    partial = results / f"{name}.jsonl.partial"
    source = partial if partial.exists() else results / f"{name}.jsonl"
    if not source.exists():
        return {}, True
    content = read_bytes(source).decode("utf-8", errors="replace")
    is_clean = not content.startswith(BYTE_ORDER_MARK)
    lines: dict[int, Line] = {}
    conflicting: set[int] = set()
    for text in content.removeprefix(BYTE_ORDER_MARK).split("\n"):  # not splitlines: an answer may hold U+2028
        if not text.strip():
            continue
        line = _parsed(text)
        if line is None:
            is_clean = False
            continue
        id = line["id"]
        if id in lines:
            is_clean = False
            if lines[id] != line:
                conflicting.add(id)
        lines[id] = line
    return {id: line for id, line in lines.items() if id not in conflicting}, is_clean


def _parsed(text: str) -> Line | None:
    """An answered row, with fields that every reader of results takes. None: the text is not an answered row."""
    try:
        line = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("id")) is not int:
        return None
    adapters, weights = line.get("adapters", []), line.get("weights", [])
    if not isinstance(adapters, list) or not isinstance(weights, list) or len(adapters) != len(weights):
        return None
    are_fit = all(isinstance(name, str) for name in adapters) and all(type(share) in (int, float) for share in weights)
    return line if are_fit and isinstance(line.get("predicted_answer"), str) else None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _plain(value: Any) -> Any:
    """A field of a row in the form for comparisons: lists for tuples, Unicode form NFC, and one kind of line end."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value.replace("\r\n", "\n").replace("\r", "\n"))
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences between two configurations, one text `field: old → new` each."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{brief(prefix + key)}: {_short(before)} → {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= DIFFERENCE_LENGTH else text[: DIFFERENCE_LENGTH // 2] + "…"
