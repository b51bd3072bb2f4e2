"""Figures of retrieval equal the counts of a loop over rows.

Files of embeddings and the command's JSON are tested, too.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import TINY

from lora_retriever.analysis.retrieval import precomputed
from lora_retriever.analysis.retrieval.evaluation import Evaluation, evaluate_retrieval
from lora_retriever.analysis.retrieval.precomputed import read_embeddings
from lora_retriever.analysis.retrieval.rankings import (
    RetrievalData,
    TextsAndDomains,
    encode_data,
    rank,
    rank_left_out,
)
from lora_retriever.analysis.retrieval.templates import Templates
from lora_retriever.cli import main
from lora_retriever.data.official import TASKS_FILE
from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.retrieval.encoders import load_encoder
from lora_retriever.retrieval.index import AdapterIndex

RANDOM = np.random.default_rng(3)
NAMES = ("ant", "bee", "cat", "dog", "eel")
DOMAINS = ("insect", "insect", "pet", "pet", "fish")
CENTERS = RANDOM.normal(size=(5, 8))
POOL = tuple((center + RANDOM.normal(size=(6, 8))).astype(np.float32) for center in CENTERS)
OWN = np.repeat(np.arange(5), [12, 9, 12, 1, 12])
QUERIES = (CENTERS[OWN] + 1.5 * RANDOM.normal(size=(len(OWN), 8))).astype(np.float32)
TASKS = tuple(NAMES[place] for place in OWN)
TEMPLATES = Templates(
    tuple(
        np.array(groups) for groups in ([0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [0] * 6, [0] * 6, [1, 1, 0, 0, 0, 0])
    ),
    rows=RANDOM.integers(0, 3, len(OWN)),
    own=OWN,
)
DATA = RetrievalData(
    NAMES,
    POOL,
    TASKS,
    QUERIES,
    TextsAndDomains(
        tuple(("text",) * 6 for _ in NAMES), ("text",) * len(TASKS), DOMAINS, tuple(DOMAINS[p] for p in OWN)
    ),
)


def ranked_by_hand(query: np.ndarray, pool: tuple[np.ndarray, ...] = POOL) -> list[str]:
    """The adapters by the cosine of their samples' mean with the query, best first."""
    means = [samples.mean(axis=0) for samples in pool]
    cosines = [float(query @ mean / np.linalg.norm(query) / np.linalg.norm(mean)) for mean in means]
    return [name for _, name in sorted(zip(cosines, NAMES, strict=True), reverse=True)]


def percent(found: list[bool]) -> float:
    return 100 * sum(found) / len(found)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_retrieval("embeddings", DATA, "cosine", TEMPLATES, cuts=[2], leave_out=True)


def values(figures: Any) -> dict[str, float]:
    return {name: cell.value for name, cell in figures.cells.items()}


def test_shares_and_reciprocal_ranks_are_what_a_loop_counts(evaluation: Evaluation) -> None:
    ranks = [ranked_by_hand(query).index(task) + 1 for query, task in zip(QUERIES, TASKS, strict=True)]
    found = values(evaluation.overall)
    for k in (1, 3, 5):
        assert found[f"top{k}"] == pytest.approx(percent([place <= k for place in ranks]))
    assert "top8" not in found, "the pool has five adapters"
    assert found["mrr"] == pytest.approx(100 * sum(1 / place for place in ranks) / len(ranks))
    of_bee = [place == 1 for place, task in zip(ranks, TASKS, strict=True) if task == "bee"]
    assert evaluation.tasks["bee"].rows == 9
    assert evaluation.tasks["bee"].cells["top1"].value == pytest.approx(percent(of_bee))
    of_insects = [place == 1 for place, task in zip(ranks, TASKS, strict=True) if task in ("ant", "bee")]
    assert evaluation.domains["insect"].cells["top1"].value == pytest.approx(percent(of_insects))


def test_with_the_own_adapter_masked_the_best_others_domains_are_counted(evaluation: Evaluation) -> None:
    domain = dict(zip(NAMES, DOMAINS, strict=True))
    first, three = [], []
    for query, task in zip(QUERIES, TASKS, strict=True):
        others = [name for name in ranked_by_hand(query) if name != task]
        first.append(domain[others[0]] == domain[task])
        three += [domain[name] == domain[task] for name in others[:3]]
    assert evaluation.overall.cells["same_domain1"].value == pytest.approx(percent(first))
    assert evaluation.overall.cells["same_domain3"].value == pytest.approx(percent(three))


def test_confusions_count_rows_by_task_and_adapter_found(evaluation: Evaluation) -> None:
    found = Counter((task, ranked_by_hand(query)[0]) for query, task in zip(QUERIES, TASKS, strict=True))
    assert evaluation.confusions == {pair: count for pair, count in found.items() if pair[0] != pair[1]}
    assert list(evaluation.confusions.values()) == sorted(evaluation.confusions.values(), reverse=True)


def test_rows_of_unseen_templates_are_reported_apart(evaluation: Evaluation) -> None:
    groups = TEMPLATES.rows.tolist()
    unseen = [group not in TEMPLATES.samples[place] for place, group in zip(OWN, groups, strict=True)]
    right = [ranked_by_hand(query)[0] == task for query, task in zip(QUERIES, TASKS, strict=True)]
    for figures, wanted in ((evaluation.unseen, True), (evaluation.seen, False)):
        assert figures is not None
        chosen = [hit for hit, new in zip(right, unseen, strict=True) if new == wanted]
        assert (figures.rows, figures.cells["top1"].value) == (len(chosen), pytest.approx(percent(chosen)))


def test_a_cut_pool_has_the_first_samples_and_forgets_the_others_templates(evaluation: Evaluation) -> None:
    cut = evaluation.cut[2]
    pool = tuple(samples[:2] for samples in POOL)
    right = [ranked_by_hand(query, pool)[0] == task for query, task in zip(QUERIES, TASKS, strict=True)]
    assert cut.overall.cells["top1"].value == pytest.approx(percent(right))
    groups = TEMPLATES.rows.tolist()
    unseen = [group not in TEMPLATES.samples[place][:2] for place, group in zip(OWN, groups, strict=True)]
    assert cut.unseen is not None
    assert cut.unseen.rows == sum(unseen)


def test_left_out_templates_are_missing_from_the_own_adapter() -> None:
    """All adapters lose the samples of the row's template number. `cat` and `dog` would have no sample left."""
    ranking, rows = rank_left_out(DATA, "cosine", TEMPLATES)
    asked = []
    for row, (place, group) in enumerate(zip(OWN, TEMPLATES.rows.tolist(), strict=True)):
        if NAMES[place] in ("cat", "dog") and group == 0:
            continue
        pool = tuple(
            samples[groups != group] if (groups != group).any() else samples
            for samples, groups in zip(POOL, TEMPLATES.samples, strict=True)
        )
        assert ranking.ranks[len(asked)] == ranked_by_hand(QUERIES[row], pool).index(TASKS[row]) + 1
        asked.append(row)
    assert rows.tolist() == asked


@pytest.mark.slow
def test_groups_of_rows_have_the_shares_that_a_loop_counts() -> None:
    groups = [None if row == 3 else str(row % 2) for row in range(len(TASKS))]
    found = evaluate_retrieval("e", DATA, "cosine", None, groups=groups).groups
    assert list(found) == ["0", "1"]
    for group, figures in found.items():
        hits = [ranked_by_hand(QUERIES[row]).index(TASKS[row]) for row, its in enumerate(groups) if its == group]
        assert figures.rows == len(hits)
        assert values(figures)["top1"] == pytest.approx(percent([hit == 0 for hit in hits]))
        assert values(figures)["top3"] == pytest.approx(percent([hit < 3 for hit in hits]))
        low, high = figures.cells["top1"].low, figures.cells["top1"].high
        assert low is not None
        assert high is not None
        assert low <= figures.cells["top1"].value <= high


@pytest.mark.slow
def test_a_row_without_an_adapter_is_a_miss() -> None:
    data = RetrievalData(NAMES, POOL, ("gnu", *TASKS[1:]), QUERIES)
    ranking = rank(data, "cosine")
    assert ranking.ranks[0] == np.inf
    whole, without = (
        values(evaluate_retrieval("e", one, "cosine", None).overall)["top5"]
        for one in (RetrievalData(NAMES, POOL, TASKS, QUERIES), data)
    )
    assert (whole, without) == (100, pytest.approx(100 * (len(TASKS) - 1) / len(TASKS)))


@pytest.mark.slow
def test_intervals_hold_their_means_and_narrow_with_rows(evaluation: Evaluation) -> None:
    doubled = RetrievalData(NAMES, POOL, TASKS * 4, np.tile(QUERIES, (4, 1)))
    for name, cell in evaluate_retrieval("e", doubled, "cosine", None).overall.cells.items():
        once = evaluation.overall.cells[name]
        assert cell.value == pytest.approx(once.value)
        assert cell.low is not None and cell.high is not None and once.low is not None and once.high is not None
        assert once.low <= once.value <= once.high
        assert cell.high - cell.low < 0.7 * (once.high - once.low)


@pytest.mark.slow
def test_scorers_that_read_texts_are_given_them(tiny_pool: list[PoolEntry], tiny_rows: list[Row]) -> None:
    encoder, pool = load_encoder(TINY / "encoder"), tiny_pool[:5]
    rows = [row for row in tiny_rows if row.task in {entry.model_name for entry in pool}][::5]
    ranking = rank(encode_data(encoder, pool, rows), "lexical")
    index = AdapterIndex.from_texts(pool, scorer="lexical")
    texts = [row.inputs for row in rows]
    hits = index.search_texts(texts, k=5)
    assert [[index.names[place] for place in row] for row in ranking.order.tolist()] == hits.names
    with pytest.raises(UserError, match="scorer lexical reads texts, not embeddings alone: name --pool and --inputs"):
        rank(RetrievalData(NAMES, POOL, TASKS, QUERIES), "lexical")


ARRAYS: dict[str, Any] = {
    "names": np.array(NAMES),
    "pool": np.stack(POOL),
    "tasks": np.array(TASKS),
    "queries": QUERIES,
}


def saved(path: Path, **changes: Any) -> Path:
    """A file of embeddings with some arrays changed, or left out (None)."""
    np.savez(path, **{name: array for name, array in {**ARRAYS, **changes}.items() if array is not None})
    return path


def test_a_file_of_embeddings_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = read_embeddings(saved(tmp_path / "e.npz", pool=np.stack(POOL).astype(np.float64)))
    assert (data.names, data.tasks, data.described) == (NAMES, TASKS, None)
    assert np.array_equal(np.stack(data.pool), np.stack(POOL))
    assert np.array_equal(data.queries, QUERIES)


def with_nan(array: np.ndarray, *place: int) -> np.ndarray:
    changed = array.copy()
    changed[place] = np.nan
    return changed


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"tasks": None}, r"array 'tasks' is missing \(needed: names, pool, tasks, queries\)"),
    "flat": ({"pool": np.zeros((30, 8))}, r"array 'pool' has shape \(30, 8\); it must have 3 dimensions"),
    "empty": ({"queries": np.zeros((0, 8))}, r"array 'queries' has shape \(0, 8\)"),
    "uneven names": ({"names": np.array(NAMES[:4])}, "array 'pool' has 5 entries and 'names' 4"),
    "uneven rows": ({"queries": QUERIES[1:]}, "array 'queries' has 45 entries and 'tasks' 46"),
    "dimension": ({"queries": QUERIES[:, 1:]}, "'pool' has dimension 8 and 'queries' 7"),
    "twice": ({"names": np.array(["ant", *NAMES[:4]])}, "adapter 'ant' is in 'names' more than once"),
    "stranger": ({"tasks": np.array([*TASKS[:-1], "gnu"])}, "row 45 of 'tasks' is of task 'gnu', of which 'names'"),
    "numbers": ({"names": np.arange(5)}, "array 'names' is of type int64; it must hold texts"),
    "texts": ({"queries": QUERIES.astype(str)}, "array 'queries' is of type .*; it must hold floating-point numbers"),
    "nan sample": ({"pool": with_nan(np.stack(POOL), 2, 5, 0)}, "adapter 'cat': NaN or infinite values"),
    "nan query": ({"queries": with_nan(QUERIES, 7, 3)}, "row 7: NaN or infinite values"),
    "pickled": (
        {"names": np.array(NAMES, dtype=object)},
        r"no readable file of numpy arrays \(.npz, nothing pickled\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_unusable_file_of_embeddings_is_named_with_its_fault(tmp_path: Path, mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=f"^{tmp_path}/e.npz: {message}"):
        read_embeddings(saved(tmp_path / "e.npz", **changes))


@pytest.mark.parametrize("content", [None, b"", b"no arrays", b"PK\x03\x04 broken"])
def test_a_missing_or_damaged_file_of_embeddings_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"e\.npz: no readable file of numpy arrays"):
        read_embeddings(tmp_path / "e.npz")


def spoilt(path: Path, member: str, change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """A file of embeddings in which one array's entry and bytes are changed."""
    saved(path)
    with zipfile.ZipFile(path) as file:
        parts = [(entry, file.read(entry)) for entry in file.infolist()]
    with zipfile.ZipFile(path, "w") as file:
        for entry, content in parts:
            file.writestr(*(change(entry, content) if entry.filename == member else (entry, content)))
    return path


def of_shape(*shape: int) -> Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]]:
    """Let an array's header state another shape."""

    def change(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return entry, header.getvalue() + content[-64:]

    return change


HEADERS: dict[str, tuple[tuple[int, ...], str]] = {
    "terabytes": ((1 << 20, 1 << 20, 8), "is 35184372088832 bytes of type float32 by its header, but the file has"),
    "more than numbers can say": (
        (1 << 62, 1 << 62, 1 << 62),
        r"is \d{57} bytes of type float32 by its header, but the file has",
    ),
    "less than nothing": ((-1, 4, 4), "is -64 bytes of type float32 by its header"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_asks_for_more_than_the_file_has_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    shape, message = HEADERS[header]
    path = spoilt(tmp_path / "e.npz", "pool.npy", of_shape(*shape))
    read_array = np.lib.format.read_array

    def small(content: Any, **options: Any) -> Any:
        assert content.name != "pool.npy"
        return read_array(content, **options)

    monkeypatch.setattr(np.lib.format, "read_array", small)
    with pytest.raises(UserError, match=f"e.npz: no readable file .*: pool.npy {message}"):
        read_embeddings(path)


def test_an_array_that_is_compressed_beyond_belief_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "SMALL", 10_000)
    path = tmp_path / "e.npz"
    np.savez_compressed(path, **{**ARRAYS, "queries": np.zeros((len(TASKS), 4000))})
    with pytest.raises(
        UserError, match=r"queries\.npy has \d+ bytes, compressed to \d+: no embeddings compress like this"
    ):
        read_embeddings(path)
    np.savez_compressed(path, **ARRAYS)
    assert read_embeddings(path).names == NAMES


@pytest.mark.parametrize(("flag", "method", "message"), [(1, 0, "is encrypted"), (0, 99, "compression method")])
def test_an_array_that_is_encrypted_or_compressed_otherwise_is_refused(
    tmp_path: Path, flag: int, method: int, message: str
) -> None:
    content = bytearray(saved(tmp_path / "e.npz").read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    for at in (local + 6, central + 8):
        content[at : at + 4] = flag.to_bytes(2, "little") + method.to_bytes(2, "little")
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UserError, match=f"e.npz: no readable file of numpy arrays .*{message}"):
        read_embeddings(tmp_path / "e.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_in_the_file_twice_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "e.npz")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("tasks.npy", b"")
    with pytest.raises(UserError, match=r"tasks\.npy is in the file 2 times"):
        read_embeddings(path)


def test_a_pipe_is_no_file_of_embeddings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "e.npz")
    with pytest.raises(UserError, match="there is no such file"):
        read_embeddings(tmp_path / "e.npz")


def test_numbers_beyond_float32_are_named(tmp_path: Path) -> None:
    pool = np.stack(POOL).astype(np.float64)
    pool[1, 2, 3] = 1e300
    with pytest.raises(UserError, match="adapter 'bee': NaN or infinite values"):
        read_embeddings(saved(tmp_path / "e.npz", pool=pool))


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bytes_changed_anywhere_are_one_message_or_finite_embeddings(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.npz"
        content = bytearray(saved(path).read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
        try:
            found = read_embeddings(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            assert np.isfinite(found.queries).all() and all(np.isfinite(samples).all() for samples in found.pool)


def test_a_pool_that_a_scorer_cannot_be_fitted_to_is_one_message() -> None:
    texts = TextsAndDomains((("",) * 6,) * len(NAMES), ("a",) * len(TASKS), DOMAINS, DOMAINS)
    with pytest.raises(UserError, match="scorer lexical: the samples of the pool are all empty"):
        rank(RetrievalData(NAMES, POOL, TASKS, QUERIES, texts), "lexical")


BENCHMARK = ["--pool", str(TINY / "pool.json"), "--inputs", str(TINY / "test.json")]
CONTRACT = ["top1", "top3", "top5", "top8"]


@pytest.fixture(scope="module")
def tiny_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of the miniature's pool and rows by its encoder."""
    pool, rows = json.loads((TINY / "pool.json").read_text()), json.loads((TINY / "test.json").read_text())
    encoder = load_encoder(TINY / "encoder")
    samples = [[sample["inputs"] for sample in entry["sample"]] for entry in pool]
    path = tmp_path_factory.mktemp("embeddings") / "tiny.npz"
    np.savez(
        path,
        names=[entry["model_name"] for entry in pool],
        pool=np.stack([encoder.encode(texts) for texts in samples]),
        tasks=[row["task"] for row in rows],
        queries=encoder.encode([row["inputs"] for row in rows]),
    )
    return path


def written(path: Path, *arguments: str) -> dict[str, Any]:
    assert main(["retrieval", *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.long
def test_the_json_has_the_four_shares_of_every_scorer(tmp_path: Path) -> None:
    result = written(tmp_path / "f.json", *BENCHMARK, "--encoder", str(TINY / "encoder"), "--scorer", "nearest", "knn")
    assert result["rows"] == 570
    assert list(result["scorers"]) == ["nearest", "knn"]
    for shares in result["scorers"].values():
        assert list(shares) == CONTRACT
        assert 0 <= shares["top1"] <= shares["top3"] <= shares["top5"] <= shares["top8"] <= 100
    details = result["details"]["knn"]
    assert details["seen"]["rows"] + details["unseen"].get("rows", 0) == 570
    low, high = details["intervals"]["top1"]
    assert low <= result["scorers"]["knn"]["top1"] <= high


@pytest.mark.long
def test_embeddings_give_the_figures_of_the_encoder_that_made_them(tmp_path: Path, tiny_embeddings: Path) -> None:
    encoder, scorers = str(TINY / "encoder"), ["--scorer", "cosine", "nearest"]
    both = ["--embeddings", str(tiny_embeddings), *BENCHMARK, "--encoder", encoder, *scorers]
    result = written(tmp_path / "both.json", *both)
    assert list(result["encoders"]) == [encoder, str(tiny_embeddings)]
    assert result["encoders"][encoder] == result["encoders"][str(tiny_embeddings)]
    assert result["scorers"] == result["encoders"][encoder]["scorers"]
    alone = written(tmp_path / "alone.json", "--embeddings", str(tiny_embeddings), *scorers)
    assert alone["scorers"] == result["scorers"]
    assert alone["details"]["cosine"]["unseen"] == {}, "without texts no templates"


@pytest.mark.long
def test_every_table_asked_for_is_printed(tiny_embeddings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--by", "task", "--confusions", "2", "--samples", "1", "5", "--leave-out-templates", "--templates"]
    data = [*BENCHMARK, "--embeddings", str(tiny_embeddings), "--scorer", "mean_ip", "cosine"]
    assert main(["retrieval", *data, *asked, "--format", "markdown"]) == 0
    tables = [part for part in capsys.readouterr().out.split("\n\n") if part.startswith("| ")]
    heads = [table.splitlines()[0] for table in tables]
    assert len(heads) == 5
    for head, words in zip(
        heads,
        [
            "left out top 3",
            "5 samples top 1",
            "mean_ip top 1 | mean_ip top 3 | cosine top 1",
            "cosine",
            "samples | rows",
        ],
        strict=True,
    ):
        assert words in head
    assert len(tables[3].splitlines()) == 2 + 2


@pytest.mark.slow
def test_a_table_by_a_further_field_has_a_line_for_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = [
        {"model_name": name, "domain": "d", "sample": [{"inputs": f"{name} {n}", "targets": ""} for n in range(3)]}
        for name in ("apple", "berry")
    ]
    row = {"targets": "", "domain": "d", "metric": "em"}
    rows = [
        {**row, "inputs": "apple 7", "task": "apple", "wording": "own"},
        {**row, "inputs": "berry 8", "task": "berry", "wording": "own"},
        {**row, "inputs": "berry 9", "task": "apple", "wording": "other's"},
        {**row, "inputs": "berry 9", "task": "berry"},
    ]
    for name, content in (("pool", pool), ("rows", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    asked = ["--pool", str(tmp_path / "pool.json"), "--inputs", str(tmp_path / "rows.json"), "--scorer", "lexical"]
    details = written(tmp_path / "f.json", *asked, "--by", "wording", "--format", "csv")["details"]["lexical"]
    assert {value: (of["rows"], of["top1"]) for value, of in details["groups"].items()} == {
        "own": (2, 100),
        "other's": (1, 0),
    }
    table = capsys.readouterr().out.split("\n\n")[-1]
    assert [line.split(",")[:2] for line in table.splitlines()[-2:]] == [["own", "2"], ["other's", "1"]]
    assert main(["retrieval", *asked, "--by", "wording"]) == 0
    assert "1 rows without wording, so left out here." in capsys.readouterr().out
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "task": "other"} for row in rows]))
    assert main(["retrieval", *asked]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(rows)} of {len(rows)} rows have no adapter of their own in the pool, and count as not found." in said
    assert main(["retrieval", *asked, "--by", "style"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "--by style: " in message
    assert "rows.json: no row has this field (the rows have further fields: wording)" in message


def official_embeddings(path: Path, **changes: Any) -> Path:
    """A file of made-up embeddings with the names of the official benchmark: 48 adapters, 2,395 rows."""
    with TASKS_FILE.open(encoding="utf-8") as lines:
        rows_of = {line["task"]: int(line["rows"]) for line in csv.DictReader(lines)}
    names = [*rows_of]
    tasks = [task for task, rows in rows_of.items() for _ in range(rows)]
    dice = np.random.default_rng(0)
    pool, queries = dice.normal(size=(48, 2, 4)), dice.normal(size=(len(tasks), 4))
    arrays = {"names": np.array(names), "pool": pool, "tasks": np.array(tasks), "queries": queries} | changes
    np.savez(path, **arrays)
    return path


@pytest.mark.long
def test_the_papers_rows_stand_under_the_official_data_alone(
    tmp_path: Path, tiny_embeddings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(path: Path, *arguments: str) -> str:
        assert main(["retrieval", "--embeddings", str(path), "--scorer", "cosine", *arguments]) == 0
        return capsys.readouterr().out

    whole = printed(official_embeddings(tmp_path / "whole.npz"), "--format", "csv")
    papers = [line for line in whole.splitlines() if line.startswith("paper: ")]
    assert any(line.split(",")[1] == "63.16" for line in papers), "a CSV has all digits"
    table = printed(tmp_path / "whole.npz")
    (trained,) = [line for line in table.splitlines() if " 63.2 " in line]
    assert "paper: " in trained and " 89.1 " in trained, "rounded like the cells above"
    assert "on the official rows" in table
    with np.load(tmp_path / "whole.npz") as arrays:
        less = {"tasks": arrays["tasks"][1:], "queries": arrays["queries"][1:]}
    for other in (tiny_embeddings, official_embeddings(tmp_path / "less.npz", **less)):
        assert "paper" not in printed(other)


def other_order(pool: list[Any]) -> list[Any]:
    return pool[::-1]


def one_sample_less(pool: list[Any]) -> list[Any]:
    return [{**pool[0], "sample": pool[0]["sample"][1:]}, *pool[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_order, "at position 0, where the file named beside it has"),
        (one_sample_less, "has 20 samples, but 19 in the pool file"),
        (lambda pool: pool[:-1], "where the file named beside it has None"),
    ],
)
def test_a_pool_that_was_not_embedded_is_refused(
    tmp_path: Path,
    tiny_embeddings: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[Any]], list[Any]],
    message: str,
) -> None:
    pool = tmp_path / "pool.json"
    pool.write_text(json.dumps(change(json.loads((TINY / "pool.json").read_text()))))
    files = ["--pool", str(pool), "--inputs", str(TINY / "test.json"), "--embeddings", str(tiny_embeddings)]
    assert main(["retrieval", *files, "--scorer", "cosine"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an --encoder, or a file of --embeddings"),
        (["--encoder", "x"], "need texts: name --pool and --inputs"),
        (["--embeddings", "x", "--pool", "y"], "--pool and --inputs belong together"),
        (["--embeddings", "x", "--by", "domain"], "need texts: name --pool and --inputs"),
        (["--embeddings", "x", "--by", "instruction"], "need texts: name --pool and --inputs"),
        (["--embeddings", "nowhere.npz"], "nowhere.npz: no readable file"),
    ],
)
def test_unusable_arguments_are_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["retrieval", *arguments, "--scorer", "cosine"]) == 2
    assert message in capsys.readouterr().err


def test_files_of_other_rows_are_not_set_side_by_side(
    tmp_path: Path, tiny_embeddings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(tmp_path / "other.npz")
    files = ["--embeddings", str(tiny_embeddings), "--embeddings", str(other)]
    assert main(["retrieval", *files, "--scorer", "cosine"]) == 2
    assert f"{other}: its adapters and rows differ from those of {tiny_embeddings}" in capsys.readouterr().err
