"""lm-evaluation-harness asks the server through its model `local-completions`: generation and log-likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from local_server import LocalServer
from places import TINY
from tiny_runs import lines_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def harness(server: LocalServer) -> Any:
    """Makes the harness's model for a `model` of the server."""
    pytest.importorskip("tenacity", reason="lm-evaluation-harness needs its extra api")
    completions = pytest.importorskip("lm_eval.models.openai_completions", reason="lm-evaluation-harness is not here")

    def make(model: str, **options: Any) -> Any:
        url = f"{server.url}/v1/completions"
        return completions.LocalCompletionsAPI(
            model=model, base_url=url, tokenizer=str(TINY / "base"), tokenizer_backend="huggingface", **options
        )

    return make


def asked(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_generated_answers_are_those_of_an_evaluation(server: LocalServer, harness: Any, paper_runs: Path) -> None:
    template = server.serving.service.codec.settings.template_text
    lines = lines_of(paper_runs, "mixture")
    wishes = {"until": ["\n\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = [asked("generate_until", template.replace("{inputs}", one["inputs"]), dict(wishes)) for one in lines]
    answers = harness("mixture", tokenized_requests=False).generate_until(requests, disable_tqdm=True)
    assert [answer.strip() for answer in answers] == [line["predicted_answer"] for line in lines]


def test_log_likelihoods_are_those_of_the_model(server: LocalServer, harness: Any, paper_runs: Path) -> None:
    line = lines_of(paper_runs, "selection")[0]
    (adapter,), service = line["adapters"], server.serving.service
    model = service.adapters
    prompt = service.codec.settings.template_text.replace("{inputs}", line["inputs"])
    lm = harness(adapter)
    continuations = [line["predicted_answer"], "none of this"]
    found = lm.loglikelihood([asked("loglikelihood", prompt, text) for text in continuations])
    for text, (logprob, is_greedy) in zip(continuations, found, strict=True):
        read, scored = lm._encode_pair(prompt, text)  # white space at the prompt's end is scored with the text
        whole = [*read, *scored]
        with torch.no_grad(), model.composed([adapter], [[1.0]]):
            logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(read), len(whole))
        assert logprob == pytest.approx(sum(float(logits[place - 1, whole[place]]) for place in places), abs=1e-3)
        assert is_greedy == all(int(logits[place - 1].argmax()) == whole[place] for place in places)
