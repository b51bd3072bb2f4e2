"""Commands as a user meets them: the exit status, and one clear message for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT, TINY
from safetensors.torch import load_file, save_file
from tiny_runs import write_profile

from lora_retriever import AdapterIndex
from lora_retriever.cli import main


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A user's own small benchmark: four tasks of the miniature with their adapters, to be spoilt by the test."""
    pool = json.loads((TINY / "pool.json").read_text())[:4]
    names = [entry["model_name"] for entry in pool]
    rows = [row for row in json.loads((TINY / "test.json").read_text()) if row["task"] in names]
    (tmp_path / "rows.json").write_text(json.dumps(rows[:: len(rows) // 8]))
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    for name in names:
        shutil.copytree(TINY / "adapters" / name, tmp_path / "adapters" / name)
    own = {"adapters": {"location": "./adapters/{adapter}"}, "data": {"rows": "rows.json", "pool": "pool.json"}}
    write_profile(tmp_path, **own)
    return tmp_path


def run(benchmark: Path, *arguments: str) -> int:
    return main(["run", "--profile", str(benchmark / "mine.yaml"), "--results", str(benchmark / "r"), *arguments])


@pytest.mark.slow
def test_a_run_prints_the_table_and_json_says_the_same(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(benchmark, "--only", "base,best_selection,mixture", "--table") == 0
    table = capsys.readouterr().out
    assert "best_selection" in table
    assert main(["summarize", str(benchmark / "r"), "--format", "json", "--output", str(benchmark / "s.json")]) == 0
    summary = json.loads((benchmark / "s.json").read_text())
    assert summary["scoring"] == "paper"
    assert list(summary["runs"]) == ["base", "mixture", "best_selection"]
    assert f"{summary['runs']['mixture']['mean']:.1f}" in table


def spoil_config(benchmark: Path, **settings: object) -> None:
    path = first_adapter(benchmark) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def first_adapter(benchmark: Path) -> Path:
    return benchmark / "adapters" / json.loads((benchmark / "pool.json").read_text())[0]["model_name"]


def spoil_weights(benchmark: Path, change: str) -> None:
    path = first_adapter(benchmark) / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = tensors[key][:, :-1].contiguous() if change == "shape" else tensors[key] * float("nan")
    save_file(tensors, path)


def only_pickled(benchmark: Path) -> None:
    folder = first_adapter(benchmark)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def spoil_rows(benchmark: Path, text: str) -> None:
    (benchmark / "rows.json").write_text(text)


MISTAKES = {
    "adapter without a config": (
        lambda b: (first_adapter(b) / "adapter_config.json").unlink(), ["{adapter}", "adapter_config.json"],
    ),
    "adapter of another base's shapes": (lambda b: spoil_weights(b, "shape"), ["{adapter}", "model.layers"]),
    "adapter with NaN": (lambda b: spoil_weights(b, "nan"), ["{adapter}", "NaN", "model.layers"]),
    "adapter with DoRA": (lambda b: spoil_config(b, use_dora=True), ["{adapter}", "DoRA"]),
    "adapter only pickled": (only_pickled, ["{adapter}", "safetensors"]),
    "no adapter at all": (lambda b: shutil.rmtree(first_adapter(b)), ["no folder", "{adapter}"]),
    "empty rows": (lambda b: spoil_rows(b, ""), ["rows.json", "empty"]),
    "row without a task": (
        lambda b: spoil_rows(b, '[{"inputs": "a", "targets": "b", "domain": "c", "metric": "em"}]'),
        ["rows.json: row 1", "'task'"],
    ),
    "unknown metric": (
        lambda b: spoil_rows(b, '[{"inputs": "a", "targets": "b", "domain": "c", "metric": "x", "task": "t"}]'),
        ["rows.json: row 1", "unknown metric 'x'"],
    ),
    "broken JSON": (lambda b: spoil_rows(b, "[\n" + '{"a": 1},\n' * 5 + "{,\n]"), ["rows.json: line 7"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_is_answered_in_one_clear_message(
    benchmark: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    spoil, fragments = MISTAKES[mistake]
    adapter = first_adapter(benchmark).name
    spoil(benchmark)
    assert run(benchmark, "--only", "best_selection") == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment.format(adapter=adapter) in message
    assert not (benchmark / "r" / "best_selection.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "nothing"], "no profile 'nothing'"),
        (["run", "--only", "bases"], "unknown method 'bases' (known: base, selection"),
        (["run", "--only", "selektion"], "all and paper); did you mean selection?"),
        (["run", "--only", ","], "--only: must name at least one"),
        (["run", "--profile", ""], "no profile ''"),
        (["run", "--limit", "0"], "must be 1 or more"),
        (["run", "--limit", "ten"], "--limit: 'ten' is no whole number"),
        (["audit", "rows.csv", "--pool", "p.csv", "--defaults", "inputs=x"], "unknown field 'inputs' (known: task, "),
        (["summarize", str(TINY / "pool.json")], "pool.json: it is a file"),
        (["run", "--results", "/proc/nowhere"], "cannot be written"),
        (["summarize", "/nowhere"], "no results folder /nowhere"),
        (["summarize", "a\0b"], "no results folder a"),
        (["summarize", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["retrieval", "--pool", str(TINY / "pool.json"), "--inputs", str(TINY / "test.json"),
          "--encoder", str(TINY / "encoder"), "--scorer", "bm25"], "unknown scorer 'bm25'"),
        (["index", "--pool", "nowhere.json", "--encoder", "x", "--out", "y"], "nowhere.json: cannot be read"),
        (["compose", "--base", str(TINY / "base"), "--adapter", "a", "--out", "y"], "expected LOCATION=WEIGHT"),
    ],
)  # fmt: skip
def test_unusable_arguments_exit_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    try:
        status = main(arguments)
    except SystemExit as exit:  # argparse's own
        status = int(exit.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_failed_rows_exit_with_1(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((benchmark / "rows.json").read_text())
    rows[0]["task"] = "unheard_of"
    (benchmark / "rows.json").write_text(json.dumps(rows))
    assert run(benchmark, "--only", "best_selection") == 1
    assert "best_selection: row 0: no adapter 'unheard_of' in the pool" in capsys.readouterr().err


@pytest.mark.long
def test_retrieval_counts_own_adapters_as_a_loop_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pool", str(TINY / "pool.json"), "--encoder", str(TINY / "encoder")]
    figures = tmp_path / "figures.json"
    retrieval = ["retrieval", *arguments, "--inputs", str(TINY / "test.json"), "--json", str(figures)]
    assert main([*retrieval, "--scorer", "cosine", "mean_ip"]) == 0
    result = json.loads(figures.read_text())
    assert set(result["scorers"]) == {"cosine", "mean_ip"}
    shares = list(result["scorers"]["cosine"].values())
    assert shares == sorted(shares)

    assert main(["index", *arguments, "--scorer", "cosine", "--out", str(tmp_path / "index")]) == 0
    index = AdapterIndex.load(tmp_path / "index")
    from lora_retriever.retrieval.encoders import load_encoder

    rows = json.loads((TINY / "test.json").read_text())
    queries = load_encoder(TINY / "encoder").encode([row["inputs"] for row in rows])
    own = sum(index.search(query[None], 1).names == [[row["task"]]] for query, row in zip(queries, rows, strict=True))
    assert result["scorers"]["cosine"]["top1"] == pytest.approx(100 * own / len(rows), abs=0.01)


@pytest.mark.slow
def test_files_with_other_columns_are_read_by_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, pool = tmp_path / "questions.csv", tmp_path / "train.csv"
    rows.write_text("question,answer,subject\nwhat is two and two,4,sums\nwhich word is the noun,tree,words\n")
    pool.write_text("question,answer,subject\nwhat is one and two,3,sums\nwhich word is the verb,run,words\n")
    named = ["--columns", "inputs=question,targets=answer,task=subject", "--defaults", "domain=mine,metric=em"]
    assert main(["audit", str(rows), "--pool", str(pool), *named]) == 0
    figures = tmp_path / "figures.json"
    files = ["--pool", str(pool), "--inputs", str(rows), *named]
    assert main(["retrieval", *files, "--scorer", "lexical", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["scorers"]["lexical"]["top1"] == 100
    out = str(tmp_path / "index")
    assert main(["index", "--pool", str(pool), *named, "--scorer", "lexical", "--out", out]) == 0
    assert AdapterIndex.load(tmp_path / "index").names == ["sums", "words"]
    training = ["train", "--base", str(tmp_path), "--out", out, "--pool", str(pool), *named]
    assert main([*training, "--only", "verbs"]) == 2
    assert "verbs" in capsys.readouterr().err
    assert main([*training[:-4], "--columns", "inputs=text"]) == 2
    assert "no column 'text' for inputs; there are: 'question', 'answer', 'subject'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_private_index_holds_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["index", "--pool", str(TINY / "pool.json"), "--encoder", str(TINY / "encoder"), "--out", str(tmp_path)]
    some_text = json.loads((TINY / "pool.json").read_text())[0]["sample"][0]["inputs"].split("\n")[0].encode()
    for options, held in (([], True), (["--scorer", "discriminant", "--private"], False)):
        assert main([*arguments, *options]) == 0
        assert (some_text in (tmp_path / "index.safetensors").read_bytes()) == held
    assert main([*arguments, "--private"]) == 2
    assert "scorer hybrid needs the samples, which a private index does not keep" in capsys.readouterr().err


@pytest.mark.slow
def test_compose_saves_a_checkpoint(benchmark: Path) -> None:
    first, second = sorted((benchmark / "adapters").iterdir())[:2]
    pair = ["--adapter", f"{first}=0.5", "--adapter", f"{second}=0.5"]
    assert main(["compose", "--base", str(TINY / "base"), *pair, "--out", str(benchmark / "both")]) == 0
    config = json.loads((benchmark / "both" / "adapter_config.json").read_text())
    ranks = [json.loads((folder / "adapter_config.json").read_text())["r"] for folder in (first, second)]
    assert config["r"] == sum(ranks)


@pytest.mark.parametrize("mistake", ["base", "twice"])
def test_compose_names_what_it_cannot_use(benchmark: Path, capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    adapter = ["--adapter", f"{first_adapter(benchmark)}=0.5"]
    base = str(benchmark) if mistake == "base" else str(TINY / "base")
    arguments = ["compose", "--base", base, *adapter, *(adapter if mistake == "twice" else [])]
    assert main([*arguments, "--out", str(benchmark / "both")]) == 2
    message = {"base": f"base model {benchmark}: cannot be loaded", "twice": "is named twice"}[mistake]
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_doctor_finds_what_is_missing(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor = ["doctor", "--profile", str(benchmark / "mine.yaml"), "--results", str(benchmark / "r")]
    assert main(doctor) == 0
    healthy = capsys.readouterr().out
    assert "no problems found" in healthy
    assert "4 of 4 are there" in healthy
    adapter = first_adapter(benchmark)
    (adapter / "adapter_model.safetensors").unlink()
    (benchmark / "rows.json").unlink()
    assert main(doctor) == 2
    findings = capsys.readouterr().out
    assert f"problem  adapter '{adapter.name}': '{adapter}' holds no adapter_model.safetensors" in findings
    assert "3 of 4 are there" in findings
    assert "problem  rows:" in findings
    assert "2 problems" in findings


@pytest.mark.slow
def test_a_device_that_is_not_there_is_named(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = benchmark / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "device": "cuda:99"}))
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert run(benchmark) == 2
    assert "device is cuda:99, but torch finds no CUDA device" in capsys.readouterr().err
    assert main(["doctor", "--profile", str(path), "--results", str(benchmark / "r")]) == 2


@pytest.mark.slow
def test_a_prompt_limit_below_the_template_is_named(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = benchmark / "mine.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "generation": {"max_prompt_tokens": 3}}))
    assert run(benchmark) == 2
    assert "generation.max_prompt_tokens is too small" in capsys.readouterr().err


@pytest.mark.slow
def test_the_doctor_knows_the_papers_profiles_without_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--profile", "llama2-7b", "--offline"])
    findings = capsys.readouterr().out
    assert "meta-llama/Llama-2-7b-hf is not on this machine" in findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        (["--help"], {"numpy", "pydantic", "torch", "transformers", "peft"}),
        (["--version"], {"numpy", "pydantic", "torch", "transformers", "peft"}),
        (["methods"], {"torch", "transformers", "peft"}),
        (["audit", "data/tiny/test.json", "--pool", "data/tiny/pool.json"], {"torch", "transformers", "peft"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_without_a_model_starts_without_the_large_packages(arguments: list[str], left_out: set[str]) -> None:
    code = (
        "import sys\nfrom lora_retriever.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print({left_out!r} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.splitlines()[-1] == "set()"
