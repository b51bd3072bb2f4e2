"""JSON files of all usual forms are read. Every other file is refused with one message that says what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_retriever.data import objects
from lora_retriever.data.objects import MAX_DIGITS, read_objects
from lora_retriever.data.tables import WrittenFloat
from lora_retriever.errors import UserError

ROW: dict[str, Any] = {"inputs": "wie?", "targets": "só", "task": "t", "domain": "d", "metric": "em"}
ROWS = [{**ROW, "inputs": f"input {number}\u2028"} for number in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FORMS = {
    "a list": json.dumps(ROWS),
    "an indented list": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "lines": LINES,
    "lines with blank lines": "\n" + LINES.replace("\n", "\n\n \t\n"),
    "lines of Windows": LINES.replace("\n", "\r\n"),
    "lines of an old Mac": LINES.replace("\n", "\r"),
    "lines without an end": LINES.rstrip(),
    "objects over several lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "the only list of an object": json.dumps({"data": ROWS}),
    "the only list of an indented object": json.dumps({"version": "1.1", "license": None, "rows": ROWS}, indent=1),
    "a list before other fields": json.dumps({"data": ROWS, "version": "1.1"}),
}


def message_of(path: Path) -> str:
    """The one message with which a file is refused."""
    with pytest.raises(UserError) as error:
        read_objects(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def written(folder: Path, content: bytes | str) -> Path:
    path = folder / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_gives_the_same_objects(tmp_path: Path, form: str, mark: bytes, packed: bool) -> None:
    content = mark + FORMS[form].encode()
    assert read_objects(written(tmp_path, gzip.compress(content) if packed else content)) == ROWS


def test_files_with_byte_order_marks_can_be_put_together(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS]
    assert read_objects(written(tmp_path, "".join(f"\ufeff{line}\n" for line in lines))) == ROWS


def test_one_pool_entry_on_one_line_is_an_entry_and_not_a_wrapper(tmp_path: Path) -> None:
    entry = {"sample": [{"inputs": "a", "targets": "b"}], "model_name": "m"}
    assert read_objects(written(tmp_path, json.dumps(entry))) == [entry]


def test_one_object_with_a_list_of_texts_is_a_row(tmp_path: Path) -> None:
    for content in ({"answers": ["a", "b"]}, {"question": "q", "answers": ["a", "b"]}, {"a": ["b"], "c": 1}):
        assert read_objects(written(tmp_path, json.dumps(content))) == [content]


def test_a_fraction_keeps_the_text_of_its_file(tmp_path: Path) -> None:
    (found,) = read_objects(written(tmp_path, '{"targets": [0.50, 1e3, -2.0]}\n'.replace("targets", "task")))
    assert [number.text for number in found["task"]] == ["0.50", "1e3", "-2.0"]
    assert found["task"] == [0.5, 1000.0, -2.0]
    assert all(isinstance(number, WrittenFloat) for number in found["task"])


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.json"))
    return buffer.getvalue()


def saved(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


OTHER_FILES = {
    "UTF-16": (LINES.encode("utf-16"), "UTF-16, not UTF-8; convert it: iconv -f UTF-16 "),
    "UTF-16 without a mark": (LINES.encode("utf-16-le"), "UTF-16LE, not UTF-8; convert it: iconv -f UTF-16LE "),
    "UTF-16BE without a mark": (LINES.encode("utf-16-be"), "UTF-16BE, not UTF-8"),
    "UTF-32": (LINES.encode("utf-32"), "UTF-32, not UTF-8"),
    "UTF-32 without a mark": (LINES.encode("utf-32-be"), "UTF-32BE, not UTF-8"),
    "Excel": (zipped("xl/workbook.xml"), "an Excel file; save the table as CSV"),
    "zip": (zipped("rows.json"), "a zip archive; unpack"),
    "a damaged zip": (zipped("rows.json")[:20], "a zip archive; unpack"),
    "npz": (saved(lambda file: np.savez(file, a=np.ones(2))), "a file of numpy arrays"),
    "npy": (saved(lambda file: np.save(file, np.ones(2))), "a numpy array"),
    "tar": (tarred(), "a tar archive; unpack"),
    "tar.gz": (gzip.compress(tarred()), "a tar archive; unpack"),
    "bzip2": (bz2.compress(LINES.encode()), "packed by bzip2; unpack"),
    "xz": (lzma.compress(LINES.encode()), "packed by xz; unpack"),
    "gzip twice": (gzip.compress(gzip.compress(LINES.encode())), "packed by gzip twice; unpack"),
    "pickle": (pickle.dumps(ROWS), "a pickle, which can run code"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "HTML": (b"<!DOCTYPE html><html></html>", "HTML or XML"),
    "zeros": (b"\0" * 4096, "damaged: the file begins with NUL bytes"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_another_kind_of_file_is_named(tmp_path: Path, kind: str) -> None:
    content, message = OTHER_FILES[kind]
    assert message_of(written(tmp_path, content)).startswith(f"this is {message}")


def test_results_may_have_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = written(tmp_path, '{"scores": [NaN, -Infinity, 1.5], "predicted_answer": ""}')
    (found,) = read_objects(path, may_have_nan=True)
    assert str(found["scores"]) == "[nan, -inf, 1.5]"


DEEP = 100_000
REFUSED = {
    "empty": ("", "the file is empty"),
    "blank": (" \n\ufeff\n", "the file is empty"),
    "an empty list": ("[]", "the file holds no rows"),
    "an empty wrapped list": ('{"data": []}', "the file holds no rows"),
    "a wrong line": (f"{LINES}{{", "line 4: not valid JSON"),
    "a wrong line of a list": ('[\n{"a": 1},\n{"a": }\n]', "line 3: not valid JSON"),
    "a list without an end": ('[{"a": 1}\n', "line 2: not valid JSON (the list has no end)"),
    "a list without a comma": ('[{"a": 1}\n{"a": 1}]', "line 2: not valid JSON (expected , or ] after a row)"),
    "more after the list": ("[{}]\n\n{}", "line 3: not valid JSON (more after the list's end)"),
    "two objects on a line": ("{}\n{} {}", "line 2: not valid JSON (more after the object's end)"),
    "two lists": ('{"train": [{}], "test": [{}]}', "one object with several lists: 'train', 'test'; write the list"),
    "a number as a row": ("[{}, 5]", "row 2: expected an object, found int"),
    "null as a row": ("[{}, null]", "row 2: expected an object, found null"),
    "a wrapped number": ('{"data": [{}, 5]}', "row 2: expected an object, found int"),
    "a text": ('"rows"', "row 1: expected an object, found str"),
    "a key twice": ('{"a": 1}\n{"inputs": "x", "inputs": "y"}', "row 2: field 'inputs' is there more than once"),
    "a key twice in a list": ('[{}, {"b": {"a": 1, "a": 1}}]', "row 2: field 'a' is there more than once"),
    "a key twice in a wrapped list": ('{"data": [{}, {"a": 1, "a": 1}]}', "row 2: field 'a' is there more than once"),
    "NaN": ('[{}, {"a": NaN}]', "row 2: NaN is no number of JSON"),
    "Infinity": ('{"a": -Infinity}', "row 1: -Infinity is no number of JSON"),
    "many digits": (f'[{{}}, {{"a": {"1" * 5000}}}]', f"row 2: a number of 5,000 digits, more than {MAX_DIGITS:,}"),
    "many digits of a fraction": (f'{{"a": 0.{"1" * 5000}}}', "row 1: a number of 5,002 digits"),
    "lists in lists": ("[" * DEEP, "row 1: objects or lists in one another, too many levels deep"),
    "objects in objects": ('{"a":' * DEEP, "row 1: objects or lists in one another"),
    "lists in a row": ('[{}, {"a":' + "[" * DEEP, "row 2: objects or lists in one another"),
    "a control character": ('{"a": "\x00"}', "line 1: not valid JSON (Invalid control character at)"),
    "Latin-1": (LINES.encode("latin-1", "replace"), "line 1: not UTF-8 (byte 0xf3); if the file is from Windows"),
    "half of a letter": (b'{}\n{"a": "\xf0\x9f"}', "line 2: not UTF-8 (byte 0xf0)"),
    "damaged gzip": (gzip.compress(LINES.encode())[:-9], "packed by gzip and damaged"),
    "gzip in name only": (b"\x1f\x8b and then text", "packed by gzip and damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_file_is_refused_by_line_or_row(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    assert message_of(written(tmp_path, content)).startswith(message)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in [
        (tmp_path, "folder"),
        (tmp_path / "pipe", "pipe"),
        ("/dev/zero", "device"),
        ("/dev/null", "device"),
    ]:
        assert message_of(Path(name)) == f"cannot be read (this is a {kind}; name a file)"


@pytest.mark.parametrize("name", ["nowhere.json", "a\0b", "x" * 5000, "\ud83d.json", "nowhere/rows.json"])
def test_a_path_of_no_file_is_one_message(name: str) -> None:
    assert message_of(Path(name)).startswith("cannot be read (")


@pytest.mark.slow
def test_a_file_is_bounded_and_so_is_what_gzip_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_FILE_BYTES", 1 << 20)
    bomb = written(tmp_path, gzip.compress(b" " * (64 << 20)))
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        assert message_of(bomb) == message_of(sparse) == "larger than 1 MiB, the maximum; divide the file"
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
).map(json.dumps)


@pytest.mark.long
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_but_a_message_comes_of_mutated_files(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, doubled and overwritten pieces of files of every form."""
    content = bytearray(data.draw(st.sampled_from([text.encode() for text in FORMS.values()])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 12)))
        pieces = (
            st.binary(max_size=6) | JSON_TEXTS.map(str.encode) | st.sampled_from([b"[", b"{", b'"', b"\\ud83d", b"NaN"])
        )
        content[start:end] = data.draw(pieces)
    path = written(tmp_path, bytes(content))
    try:
        assert all(isinstance(found, dict) for found in read_objects(path))
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
