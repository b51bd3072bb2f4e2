"""Every registered method on the miniature, from inputs to scores; rules for all: masking, gates, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import QUIET, before_reading, lines_of, tiny_profile

from lora_retriever.cli import main
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods import Method, registered
from lora_retriever.methods.context import Context
from lora_retriever.metrics import main_score
from lora_retriever.running.evaluate import evaluate

pytestmark = pytest.mark.long

QUICK = {"samples": 1, "epochs": 1}
OPTIONS = {
    "lorahub": {"adapters": 4, "samples": 1, "steps": 3},
    **dict.fromkeys(("moe_top1", "moe_top3", "moe_soft", "smear", "phatgoose"), QUICK),
    "seqr": {"samples": 1},
    "layerwise": {"samples": 1},
}
STATIC = ("adaptersoup", "lorahub", "uniform")
"""These methods give all rows one composition, whatever the inputs."""

METHODS = list(registered().values())
EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
OOD = pytest.mark.parametrize("method", [m for m in METHODS if m.masked], ids=lambda method: method.name)
GATED = pytest.mark.parametrize("method", [m for m in METHODS if m.gate is not None], ids=lambda method: method.name)


def small_profile(folder: Path, batch_size: int = 64) -> Profile:
    """The bundled profile with options that learn little, and short answers."""
    return tiny_profile(folder, generation={"max_new_tokens": 6, "batch_size": batch_size}, options=OPTIONS)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return small_profile(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def results(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All registered methods on the first row of every task, and a file `seeded`: the methods that read the seed."""
    folder = tmp_path_factory.mktemp("results")
    seed, reading = Context.seed.fget, set()  # type: ignore[attr-defined]

    def noted(context: Context) -> int:
        reading.add(context._declared.name)
        return int(seed(context))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "seed", property(noted))
        evaluate(profile, ["all"], folder, 1, QUIET)
    (folder / "seeded").write_text("\n".join(sorted(reading)))
    return folder


@EVERY
def test_every_method_answers_every_row(results: Path, method: Method) -> None:
    lines = lines_of(results, method.name)
    assert [line["id"] for line in lines] == [line["id"] for line in lines_of(results, "base")]
    assert len({line["task"] for line in lines}) == len(lines) == 19
    assert all(line["generated_tokens"] >= 1 for line in lines)
    meta = json.loads((results / f"{method.name}.meta.json").read_text())
    assert meta["finished"] is True
    assert meta["failed_rows"] == []
    assert not list(results.glob("*.partial"))


def test_a_method_is_swept_over_seeds_if_it_reads_the_seed_and_otherwise_not(results: Path) -> None:
    """DARE's composer has the seed as an option, and reads no context."""
    reading = {*(results / "seeded").read_text().splitlines(), "dare", "dare_ood"}
    assert {method.name for method in METHODS if method.depends_on("seed", 3)} == reading


@OOD
def test_no_row_has_its_own_adapter_out_of_domain(results: Path, method: Method) -> None:
    lines = lines_of(results, method.name)
    for line in lines:
        assert line["task"] not in [a for a, w in zip(line["adapters"], line["weights"], strict=True) if w]
    assert any(line["adapters"] for line in lines)


@pytest.mark.parametrize("name", STATIC)
def test_a_static_method_gives_all_rows_one_composition(results: Path, name: str) -> None:
    compositions = {(*line["adapters"], *line["weights"]) for line in lines_of(results, name)}
    assert len(compositions) == 1
    assert len(next(iter(compositions))) >= 2  # an adapter and its weight


def test_methods_that_read_the_input_do_not(results: Path) -> None:
    for name in ("mixture", "calibrated", "logo", "nearest_weights", "arrow", "spectr", "moe_soft", "smear"):
        compositions = {(*line["adapters"], *line["weights"]) for line in lines_of(results, name)}
        assert len(compositions) > 1, name


@GATED
def test_a_gates_weights_sum_to_one_and_its_entropy_is_recorded(results: Path, method: Method) -> None:
    """The weights at a token and module sum to 1, so the means sum to 1.

    `layerwise` leaves some modules to the base.
    """
    for line in lines_of(results, method.name):
        total = sum(line["weights"])
        assert 0 < total < 1.001 if method.plain_name == "layerwise" else total == pytest.approx(1, abs=1e-3)
        assert line["weights"] == sorted(line["weights"], reverse=True)
        if method.plain_name in ("moe_top1", "lag", "seqr"):  # one adapter for a token
            assert line["gate_entropy"] == 0
        else:
            assert line["gate_entropy"] > 0


def test_runs_without_a_gate_record_no_entropy(results: Path) -> None:
    for method in METHODS:
        if method.gate is None:
            assert all("gate_entropy" not in line for line in lines_of(results, method.name))


def test_the_summary_shows_every_run_with_intervals(results: Path, tmp_path: Path) -> None:
    """With one row for each task, only intervals over tasks are possible: rows cannot be drawn within their task."""
    out = tmp_path / "summary.json"
    assert main(["summarize", str(results), "--by-run", "--format", "json", "--output", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["left_out"] == []
    assert content["missing_rows"] == {}
    assert content["runs"].keys() == registered().keys()
    metrics = {line["task"]: line["metric"] for line in lines_of(results, "mixture")}
    for run in content["runs"].values():
        low, high = run["intervals"]["mean_over_tasks"]
        assert low <= run["mean"] <= high
        scores = {run["tasks"][task][main_score(metric)] for task, metric in metrics.items()}
        assert (low < high) == (len(scores) > 1)  # tasks of equal scores do not vary


def test_the_table_by_run_has_a_line_for_each(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(results), "--by-run", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in registered())


def test_a_second_evaluation_does_nothing(results: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file() and path.name != ".lock"}

    before = touched()
    before_reading(monkeypatch, pytest.fail)
    evaluate(profile, ["all"], results, 1, QUIET)
    assert touched() == before


@pytest.mark.parametrize("name", ["smear", "moe_top1"])
def test_a_gated_run_killed_half_way_goes_on_to_the_file_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    profile = small_profile(tmp_path, batch_size=5)
    evaluate(profile, [name], tmp_path / "undisturbed", 1, QUIET)
    killed, partial = tmp_path / "killed", tmp_path / "killed" / f"{name}.jsonl.partial"

    def interrupt(_: object) -> None:
        if partial.exists() and partial.stat().st_size:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_reading(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(profile, [name], killed, 1, QUIET)
    assert 0 < len(partial.read_text(encoding="utf-8").splitlines()) < 19
    records = [record.stat().st_mtime_ns for record in killed.glob("learned/*/record.json")]

    evaluate(profile, [name], killed, 1, QUIET)
    assert [
        record.stat().st_mtime_ns for record in killed.glob("learned/*/record.json")
    ] == records  # nor is it learned
    assert len(records) == 1
    assert (killed / f"{name}.jsonl").read_bytes() == (tmp_path / "undisturbed" / f"{name}.jsonl").read_bytes()
