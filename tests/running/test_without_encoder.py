"""A profile without an encoder: methods without embeddings work, and no encoder is fetched, loaded or recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from places import TINY
from tiny_runs import QUIET, tiny_profile, write_profile

from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.experiment import benchmark as experiment_module
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods import context as context_module
from lora_retriever.methods import registered
from lora_retriever.running import evaluate as evaluation
from lora_retriever.running.doctor import examine
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import configuration

BY_TEXTS = ["selection", "mixture_ood", "calibrated"]
WITHOUT_RETRIEVAL = ["base", "best_selection", "uniform"]
ALWAYS = {f"{name}{ood}" for name in ("adaptersoup", "lorauter", "nucleus", "token_level") for ood in ("", "_ood")}
"""The methods that compare embeddings by cosine under any profile."""


@pytest.fixture
def lexical(tmp_path: Path) -> Profile:
    return tiny_profile(tmp_path, encoder=None, retrieval={"scorer": "lexical", "k": 3})


@pytest.mark.long
def test_methods_of_texts_answer_without_an_encoder_as_they_do_beside_one(
    lexical: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [*BY_TEXTS, *WITHOUT_RETRIEVAL]
    monkeypatch.delattr(context_module, "load_encoder")
    monkeypatch.setattr(experiment_module, "fetch", lambda *arguments: pytest.fail("nothing may be fetched"))
    evaluate(lexical, methods, tmp_path / "without", 1, QUIET)
    (tmp_path / "beside").mkdir()
    unused = {"location": "nobody/has-this-encoder"}
    beside = tiny_profile(tmp_path / "beside", encoder=unused, retrieval={"scorer": "lexical", "k": 3})
    evaluate(beside, methods, tmp_path / "with", 1, QUIET)
    for method in methods:
        paths = [tmp_path / folder / f"{method}.jsonl" for folder in ("without", "with")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        records = [json.loads(path.with_name(f"{method}.meta.json").read_text()) for path in paths]
        assert records[0]["configuration"] == records[1]["configuration"]
        for record in records:
            assert "encoder" not in record["configuration"]
            assert "encoder" not in record["file_hashes"]


def test_which_methods_need_an_encoder(tiny: Profile, lexical: Profile) -> None:
    assert {name for name, method in registered().items() if method.needs_encoder(lexical)} == ALWAYS
    by_scorer = {"selection", "fusion", "mixture", "calibrated", "sure", "ties", "dare", "svd", "lego"}
    by_scorer |= {f"{name}_ood" for name in by_scorer}
    assert {name for name, method in registered().items() if method.needs_encoder(tiny)} == ALWAYS | by_scorer


@pytest.mark.slow
def test_a_profile_with_an_encoder_that_is_used_records_what_it_recorded_before(tiny: Profile) -> None:
    """Finished runs stay valid, because their configurations have these fields."""
    benchmark = open_benchmark(tiny, 1)
    for name in ("mixture", "lorauter", "calibrated_ood"):
        recorded = configuration(tiny, benchmark, registered()[name])["encoder"]
        assert recorded == {
            "hash": benchmark.hashes["encoder"],
            "layout": "auto",
            "instruction": "Represent the sentence for similar task retrieval: ",
        }
    assert benchmark.encoder == TINY / "encoder"


@pytest.mark.slow
def test_a_finished_run_whose_record_names_an_encoder_that_was_not_used_stays_valid(
    lexical: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "r"
    evaluate(lexical, ["selection"], results, 1, QUIET)
    path = results / "selection.meta.json"
    record = json.loads(path.read_text())
    record["configuration"]["encoder"] = {"hash": "abc", "layout": "auto", "instruction": ""}
    digest = hashlib.sha256(json.dumps(record["configuration"], sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**record, "configuration_hash": digest}))
    monkeypatch.delattr(evaluation, "load_backend")  # so any work that is left would raise
    evaluate(lexical, ["selection"], results, 1, QUIET)
    record["configuration"]["k"] = 7
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="was made with another configuration: k: 7 → 1"):
        evaluate(lexical, ["selection"], results, 1, QUIET)


ENDING = (
    ". Add encoder: {location: FOLDER_OR_HUB_ID}, or set retrieval.scorer to a scorer that reads texts alone (lexical)"
)


@pytest.mark.parametrize(
    ("methods", "sweep", "message"),
    [
        (["mixture", "selection"], ["scorer=lexical,cosine"],
         f"selection@scorer=cosine, mixture@scorer=cosine by the scorer cosine{ENDING}"),
        (["lorauter"], [], "lorauter under every scorer. Add encoder: {location: FOLDER_OR_HUB_ID}, or name other "
         "methods"),
        (["base", "mixture", "adaptersoup"], ["scorer=hybrid"],
         f"mixture@scorer=hybrid by the scorer hybrid; adaptersoup under every scorer{ENDING}, or name other methods"),
    ],
)  # fmt: skip
def test_a_missing_encoder_is_named_with_what_needs_it_before_anything_is_made(
    lexical: Profile, tmp_path: Path, methods: list[str], sweep: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        evaluate(lexical, methods, tmp_path / "r", 1, QUIET, sweep)
    assert str(error.value) == f"profile mine: encoder: the field is missing, and embeddings are read: {message}"
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_doctor_looks_at_an_encoder_only_if_it_is_used(lexical: Profile, tmp_path: Path) -> None:
    def findings(profile: Profile, *methods: str) -> dict[str, str]:
        chosen = profile.model_copy(update={"methods": methods})
        found = [finding for finding in examine(chosen, tmp_path / "r") if "encoder" in finding.text]
        return {finding.text: finding.level for finding in found}

    assert findings(lexical, "mixture", "base") == {}
    ((text, level),) = findings(lexical, "lorauter").items()
    assert level == "problem"
    assert "encoder: the field is missing, and embeddings are read: lorauter under every scorer" in text
    (tmp_path / "beside").mkdir()
    unused: dict[str, Any] = {"encoder": {"location": "./nowhere"}, "retrieval": {"scorer": "lexical"}}
    beside = tiny_profile(tmp_path / "beside", **unused)
    assert findings(beside, "mixture", "arrow") == {"encoder: ./nowhere is not used by these methods": "ok"}
    assert findings(beside, "lorauter")[f"encoder: profile mine: no folder {tmp_path / 'beside/nowhere'}"] == "problem"


# Commands


@pytest.mark.long
def test_commands_of_texts_take_no_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = ["--pool", str(TINY / "pool.json")]
    rows = ["--inputs", str(TINY / "test.json"), "--json", str(tmp_path / "figures.json")]
    assert main(["index", *pool, "--scorer", "lexical", "--out", str(tmp_path / "index")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index'}: 19 adapters, scorer lexical\n"
    assert main(["retrieval", *pool, *rows, "--scorer", "lexical", "--encoder", "nobody/has-this"]) == 0
    printed = capsys.readouterr()
    assert "--encoder and --embeddings are not used: these scorers read texts alone" in printed.err
    alone = json.loads((tmp_path / "figures.json").read_text())
    encoder = ["--encoder", str(TINY / "encoder")]
    assert main(["retrieval", *pool, *rows, *encoder, "--scorer", "cosine", "lexical"]) == 0
    beside = json.loads((tmp_path / "figures.json").read_text())
    assert alone["scorers"]["lexical"] == beside["scorers"]["lexical"]
    assert alone["rows"] == 570


@pytest.mark.slow
def test_commands_name_the_scorer_that_needs_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = ["--pool", str(TINY / "pool.json")]
    assert main(["index", *pool, "--out", str(tmp_path / "index")]) == 2
    assert "scorer hybrid reads embeddings: name an --encoder, or take --scorer lexical" in capsys.readouterr().err
    rows = ["--inputs", str(TINY / "test.json")]
    assert main(["retrieval", *pool, *rows, "--scorer", "lexical", "nearest"]) == 2
    assert "scorer nearest reads embeddings: name an --encoder, or a file of --embeddings" in capsys.readouterr().err


def test_a_report_says_that_an_index_of_texts_has_no_similarities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = ["--index", str(tmp_path / "index")]
    assert main(["index", "--pool", str(TINY / "pool.json"), "--scorer", "lexical", "--out", index[1]]) == 0
    assert main(["report", str(tmp_path), *index]) == 2
    assert f"--index {index[1]}: scorer lexical reads texts alone, so there is nothing" in capsys.readouterr().err


def test_a_profile_s_text_may_leave_the_encoder_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(write_profile(tmp_path, encoder=None))
    text = path.read_text()
    assert "encoder: null\n" in text
    path.write_text(text.replace("encoder: null\n", ""))
    assert main(["run", "--profile", str(path), "--only", "mixture", "--results", str(tmp_path / "r")]) == 2
    assert "profile mine: encoder: the field is missing" in capsys.readouterr().err
