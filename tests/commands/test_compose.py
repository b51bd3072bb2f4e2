"""`lora-retriever compose` also takes encoder-decoder bases, and refuses unusable arguments with one line."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from made_up import tiny_t5
from places import TINY
from transformers import AutoModelForSeq2SeqLM

from lora_retriever.cli import main


def t5_adapter(folder: Path, base: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config).save_pretrained(str(folder))
    return str(folder)


@pytest.mark.slow
def test_adapters_of_a_t5_are_composed(tmp_path: Path) -> None:
    base = tmp_path / "t5"
    tiny_t5(base)
    first, second = (t5_adapter(tmp_path / f"adapter {seed}", base, seed) for seed in (1, 2))
    out = tmp_path / "both"
    arguments = ["--adapter", f"{first}=0.75", "--adapter", f"{second}=0.25", "--out", str(out)]
    assert main(["compose", "--base", str(base), *arguments]) == 0

    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 8, 9]])}
    with torch.no_grad():
        plain = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
        untouched = plain(**inputs).logits
        composed = peft.PeftModel.from_pretrained(plain, str(out)).eval()(**inputs).logits
        weighted = peft.PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), first, "first")
        weighted.load_adapter(second, "second")
        weighted.add_weighted_adapter(["first", "second"], [0.75, 0.25], "both", combination_type="cat")
        weighted.set_adapter("both")
        expected = weighted.eval()(**inputs).logits
    size = float(expected.abs().max())
    assert (untouched - expected).abs().max() > 0.1 * size
    torch.testing.assert_close(composed, expected, atol=1e-5 * size, rtol=0)


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_a_weight_that_is_no_finite_number_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weight: str
) -> None:
    adapter = f"{TINY / 'adapters' / 'city_qa'}={weight}"
    out = tmp_path / "out"
    assert main(["compose", "--base", str(TINY / "base"), "--adapter", adapter, "--out", str(out)]) == 2
    assert f"--adapter {adapter}: the weight must be a finite number" in capsys.readouterr().err
    assert not out.exists()
