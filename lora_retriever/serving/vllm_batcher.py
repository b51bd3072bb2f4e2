"""`VllmBatcher`: vLLM's engine in this process, step by step.

vLLM's scheduler runs in the thread that calls `step`, and not in a process of its own: an aborted job is forgotten when
`abort` returns, and the death of a worker is an error of the next step. On one GPU, vLLM computes in this process. On a
CPU, and for several GPUs, vLLM computes in worker processes, which end with this process.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

from lora_retriever.backends.base import is_broken_device
from lora_retriever.backends.checkpoints import Served, allowed_rank
from lora_retriever.backends.vllm import (
    EngineError,
    Parts,
    engine_arguments,
    failing_as_engine,
    lora_request,
    rank_of_largest,
    starting,
)
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.loop import Event, Sampling, Token

if TYPE_CHECKING:
    from vllm.logprobs import Logprob


class VllmBatcher:
    """The engine, with the interface that `VllmLoop` uses.

    Attributes:
        max_rank: the profile's `serve.rank`, or the rank of the largest mixtures of `retrieval.k` adapters.
        max_tokens: the profile's `serve.tokens`, or the number of the base's positions if that is smaller.
    """

    def __init__(self, parts: Parts, profile: Profile) -> None:
        """Start vLLM, which takes a minute.

        Raises:
            UserError: vLLM does not start.
        """
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        limits, serve = parts.limits, profile.serve
        positions = limits.table or limits.trained
        self.max_tokens = serve.tokens if positions is None else min(serve.tokens, positions)
        largest = rank_of_largest(parts.writer, profile.retrieval.k)
        self.max_rank = largest if serve.rank is None else allowed_rank(serve.rank)
        self._eos_ids = parts.eos_ids
        self._broken = False
        with starting(parts.source):
            arguments = EngineArgs(
                **engine_arguments(parts.source, self.max_rank, self.max_tokens),
                max_num_batched_tokens=serve.read_tokens + parts.settings.batch_size,
                enable_chunked_prefill=True,
                disable_log_stats=True,
            )
            config = arguments.create_engine_config()
            self._llm = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)

    def add(self, id: int, prompt: Sequence[int], sampling: Sampling, scored: bool, served: Served) -> None:
        """See `Batcher`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        decoding = SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
            prompt_logprobs=(sampling.logprobs or 0) if scored else None,
            # Answers end at the EOS tokens of `eos_ids` only, as in the local backend. vLLM would add others.
            stop_token_ids=self._eos_ids,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._check_works()
        with failing_as_engine():
            self._llm.add_request(
                str(id), {"prompt_token_ids": list(prompt)}, decoding, lora_request=lora_request(served)
            )

    def step(self) -> list[Event]:
        """See `Batcher`."""
        self._check_works()
        try:
            with failing_as_engine():
                outputs = self._llm.step()
        except EngineError:
            self._broken = True
            raise
        events = []
        for output in outputs:
            (made,) = output.outputs
            read = output.prompt_logprobs or ()
            events.append(
                Event(
                    int(output.request_id),
                    tuple(_tokens(made.token_ids, made.logprobs or repeat(None))),
                    made.finish_reason,
                    tuple(_tokens(output.prompt_token_ids or (), read)) if read else (),
                )
            )
        return events

    def abort(self, id: int) -> None:
        """See `Batcher`."""
        if not self._broken:
            self._llm.abort_request([str(id)])

    def check(self, served: Served) -> None:
        """See `Batcher`."""
        with failing_as_engine():
            self._llm.add_lora(lora_request(served))

    def settle(self) -> None:
        """See `Batcher`."""
        if not self._broken:
            self._llm.list_loras()  # processes of vLLM answer in turn, after the steps that were begun

    def shutdown(self) -> None:
        """See `Batcher`."""
        self._llm.engine_core.shutdown()
        del self._llm
        gc.collect()

    def _check_works(self) -> None:
        if self._broken:
            raise EngineError("vLLM failed before, and answers nothing more; start the server again")


def is_broken_engine(error: Exception) -> bool:
    """Whether an error says that vLLM, or its device, answers nothing more."""
    return isinstance(error, EngineError) or is_broken_device(error)


def _tokens(ids: Iterable[int], places: Iterable[Mapping[int, Logprob] | None]) -> Iterable[Token]:
    """Tokens with their log-probabilities, and the best tokens at each place with theirs, if known."""
    for id, place in zip(ids, places, strict=False):
        if place is None:
            yield Token(id)
            continue
        best = sorted(place.items(), key=lambda item: item[1].rank or 0)
        yield Token(id, place[id].logprob, tuple((other, found.logprob) for other, found in best))
