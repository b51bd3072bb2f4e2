"""Where rows and samples come from: a file, a folder of the library `datasets`, or a data set on the Hub.

A folder is either a folder that `save_to_disk` wrote, or a folder of data files, which `datasets` divides into splits
by the files' names. `datasets` only says which files a split has: the files are read by `objects`, so that the same
text is read from every place. No code of a data set runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_retriever.data.objects import MAX_FILE_BYTES, read_objects, read_text
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.escaping import quoted
from lora_retriever.files import hash_path, safe_name
from lora_retriever.hub import fetch

HUB = "hub:"
"""The beginning of the location of a data set on the Hub: `hub:org/name`."""
WANTED = ("*.json", "*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.arrow", "*.gz", "README.md")
"""Files of a data set that are fetched. `README.md` may say which files a split has. Never code, never pickles."""
STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"
"""Files that show that `save_to_disk` wrote a folder: one split, or one sub-folder for each split."""
MAX_NAMES = 12
"""Maximum number of names that one message lists."""


@dataclass(frozen=True)
class DataSource:
    """A place of rows or samples, and how their fields are found there.

    Attributes:
        path: a file, a folder, or `hub:` and a Hub id.
        split: the split of a folder or of a data set on the Hub. None: the only split.
        subset: the subset of a data set that has several. None: the only subset, or the default subset. revision: the
            commit of a data set on the Hub. None: the newest.
        columns: for each field, the name of the column in the file from which the field is read.
        defaults: the value of a field, by the field, where the file does not have the field.
    """

    path: Path
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(place: Path | str | DataSource) -> DataSource:
        """The place itself, or the place of a path."""
        return place if isinstance(place, DataSource) else DataSource(Path(place))

    @property
    def is_on_hub(self) -> bool:
        """Whether the place is a data set on the Hub."""
        return str(self.path).startswith(HUB)


def read_source(source: DataSource) -> list[dict[str, Any]]:
    """The objects of a place, in the order of the place's files, with the fields that `columns` and `defaults` name.

    `columns` and `defaults` are for tables: they do not apply to the entries of a pool.

    Raises:
        UserError: the place cannot be read, has no such split or column, is larger than a file may be, or a file is
            unusable (`read_objects`). The message names the file and the row.
    """
    files = _files(source)
    sizes = sum(os.path.getsize(file) for file in files) if len(files) > 1 else 0
    if sizes > MAX_FILE_BYTES:
        raise UserError(f"{source.path}: larger than {MAX_FILE_BYTES >> 20} MiB, the maximum; save a part of the rows")
    objects = [content for file in files for content in read_objects(file)]
    if not objects:
        raise UserError(f"{source.path}: the folder holds no rows")
    are_entries = isinstance(objects[0].get("sample"), list)
    return objects if are_entries else _with_fields(source, objects)


def hash_source(source: DataSource) -> str:
    """SHA-256 of a place in hexadecimal: of its file, of its folder, or of the files of a data set on the Hub.

    Raises:
        UserError: the place cannot be read.
    """
    if not source.is_on_hub:
        return hash_path(source.path)
    hashes = [hash_path(file) for file in _files(source)]  # the cache's folder may hold other files, too
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _files(source: DataSource) -> list[Path]:
    """The files of a place: one file, or the files of the split."""
    if source.is_on_hub:
        folder = fetch(str(source.path).removeprefix(HUB), source.revision, WANTED, repo_type="dataset")
        return _files_of_split(folder, source)
    if source.revision is not None:
        raise UserError(f"{source.path}: a revision is only for a data set on the Hub; leave revision out")
    if not os.path.isdir(source.path):
        if source.split is not None or source.subset is not None:
            raise UserError(f"{source.path}: a file has no splits and no subsets; leave split and subset out")
        return [source.path]
    if (source.path / STATE_FILE).exists():
        if source.split is not None:
            raise UserError(f"{source.path}: this folder is one split; leave split out")
        return _saved_files(source.path)
    if (source.path / SPLITS_FILE).exists():
        splits = sorted(file.parent.name for file in source.path.glob(f"*/{STATE_FILE}"))
        return _saved_files(source.path / _chosen(source, splits))
    return _files_of_split(source.path, source)


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of one split that `save_to_disk` wrote, in their order."""
    file = folder / STATE_FILE
    try:
        names = [entry["filename"] for entry in json.loads(read_text(file))["_data_files"]]
        return [folder / safe_name(name, "file") for name in names]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: names no data files; save the data set again with save_to_disk") from error


def _files_of_split(folder: Path, source: DataSource) -> list[Path]:
    """The files of a split by the rules of `datasets`: names of files and folders, or the head of `README.md`."""
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(str(folder), source.subset).config.data_files or {}
    except Exception as error:  # many kinds of errors: no data files, a script, a wrong README.md, …
        raise UserError(f"{source.path}: no data set that can be read: {one_line_of(error)}") from error
    files = {str(split): [Path(file) for file in files] for split, files in found.items()}
    return files[_chosen(source, list(files))]


def _chosen(source: DataSource, splits: Sequence[str]) -> str:
    """The split that the source names, or the only split."""
    listed = ", ".join(splits[:MAX_NAMES]) or "none"
    if source.split is None and len(splits) != 1:
        raise UserError(f"{source.path}: {len(splits)} splits ({listed}); name one as split in the profile's data")
    if source.split is not None and source.split not in splits:
        raise UserError(f"{source.path}: no split {quoted(source.split)}; there are: {listed}")
    return source.split or splits[0]


def _with_fields(source: DataSource, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects with the fields that `columns` and `defaults` name, in place of the columns."""
    if not source.columns and not source.defaults:
        return objects
    known = dict.fromkeys(name for content in objects for name in content)
    same = {unicodedata.normalize("NFC", name): name for name in known}  # a column's name in the file, by its NFC form
    columns = {name: same.get(unicodedata.normalize("NFC", column), column) for name, column in source.columns.items()}
    for name, column in columns.items():
        if column not in known:
            listed = ", ".join(map(quoted, list(known)[:MAX_NAMES]))
            raise UserError(f"{source.path}: no column {quoted(column)} for {name}; there are: {listed}")
    replaced = {*columns, *columns.values()}
    return [
        {
            **source.defaults,
            **{name: value for name, value in content.items() if name not in replaced},
            **{name: content[column] for name, column in columns.items() if column in content},
        }
        for content in objects
    ]
