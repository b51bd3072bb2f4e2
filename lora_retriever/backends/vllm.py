"""The backend of vLLM: every composition is written as one LoRA checkpoint, and vLLM serves many checkpoints at once.

Only vLLM loads the model weights of the base. The checkpoints are written to a folder in memory. Rows that share a
composition share its checkpoint, which is removed after the last of these rows.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from lora_retriever.backends.base import Outcome, broken_device, is_broken_device
from lora_retriever.backends.checkpoints import Checkpoints, Served, allowed_rank
from lora_retriever.data.rows import shortened
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import BALANCED, Profile
from lora_retriever.generation.batches import Request, unfinished
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
from lora_retriever.generation.generator import Generator, answer_of
from lora_retriever.generation.limits import Limits, check_settings, check_tokens, limits_of
from lora_retriever.generation.loading import ModelSource, load_tokenizer, skeleton
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.special_tokens import eos_token_ids
from peft_composition import AdapterError, Composer, CompositionError, CompositionWriter, Gate

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

BATCHES_IN_CHUNK = 4
"""Number of batches that vLLM is given at once, as one chunk. vLLM fills the slots of ended rows with waiting rows."""

LORAS = 32
"""Maximum number of compositions that vLLM computes with at once."""

REASON_LENGTH = 300
"""Maximum length of the part of vLLM's own message that a message shows, in characters."""

Key = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Parts:
    """The base without its model weights, the adapters and the settings with which an engine of vLLM starts.

    Attributes:
        eos_ids: the EOS tokens at which answers end.
        writer: holds the adapters, and writes their compositions.
    """

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    eos_ids: list[int]
    writer: CompositionWriter

    @property
    def settings(self) -> GenerationSection:
        """How prompts are made and answered."""
        return self.source.generation


class EngineError(Exception):
    """The engine has failed, and can answer nothing more."""


class Engine(Protocol):
    """A source of tokens. `max_rank` is the highest rank of a checkpoint that the engine serves."""

    max_rank: int

    def generate(self, prompts: Sequence[list[int]], compositions: Sequence[Served | None]) -> list[list[int]]:
        """The generated tokens of every prompt, with the EOS token. Either all prompts have compositions or none has.

        Raises:
            EngineError: the tokens could not be generated.
        """
        ...

    def shutdown(self) -> None:
        """Free the memory."""
        ...


class VllmEngine:
    """vLLM in processes of its own. These processes stay if this process is killed by SIGKILL."""

    def __init__(self, parts: Parts, max_rank: int) -> None:
        """Start vLLM, which takes a minute.

        Raises:
            UserError: vLLM does not start.
        """
        import vllm

        self.max_rank = max_rank
        settings = parts.settings
        longest = settings.max_prompt_tokens + settings.max_new_tokens
        # Answers end at the EOS tokens of `eos_ids` only, as in the local backend. vLLM would add others.
        self._decoding = vllm.SamplingParams(
            temperature=0,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=parts.eos_ids,
            ignore_eos=True,
            detokenize=False,
        )
        with starting(parts.source):
            self._llm = vllm.LLM(**engine_arguments(parts.source, max_rank, longest))

    def generate(self, prompts: Sequence[list[int]], compositions: Sequence[Served | None]) -> list[list[int]]:
        """See `Engine`."""
        loras = [None if served is None else lora_request(served) for served in compositions]
        with failing_as_engine():
            outputs = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], self._decoding, lora_request=loras, use_tqdm=False
            )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def shutdown(self) -> None:
        """End vLLM's processes."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()


class VllmBackend:
    """Answers with an engine that serves LoRA checkpoints."""

    def __init__(
        self,
        start: Callable[[int], Engine],
        writer: CompositionWriter,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        adapters_of_a_row: int,
        vocabulary: int,
        answer_end: str | None = None,
    ) -> None:
        """Start the first engine, for the highest rank that any `adapters_of_a_row` adapters of the pool can have.

        Args:
            start: starts an engine of a given highest rank.
            vocabulary: number of tokens that the base has an embedding for.
            answer_end: `GenerationSection.answer_end`.
        """
        self._answer_end = answer_end
        self._vocabulary = vocabulary
        self._start = start
        self._tokenizer = tokenizer
        self._chunk_size = BATCHES_IN_CHUNK * batch_size
        rank = rank_of_largest(writer, adapters_of_a_row)
        self._engine: Engine | None = start(rank)
        # Twice the size of a chunk: vLLM uses the same file system, which must not become full.
        self._checkpoints = Checkpoints(writer, 2 * self._chunk_size, rank)  # all of one mode

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """The outcomes, chunk by chunk. Rows without adapters come first, in chunks of their own.

        Raises:
            UserError: there is a gate.
        """
        if gate is not None:
            raise UserError("backend: vllm serves checkpoints, which cannot be weighed by token; use backend: local")
        chunks = unfinished(plan_chunks(requests, self._chunk_size), done)
        last: dict[Hashable, int] = {
            key_of(request.composition): number for number, chunk in enumerate(chunks) for request in chunk
        }
        try:
            for number, chunk in enumerate(chunks):
                yield self._answer(chunk, mode)
                self._checkpoints.drop([key for key in self._checkpoints.keys if last[key] == number])
        finally:
            self._checkpoints.drop(self._checkpoints.keys)

    def generator(self) -> Generator:
        """There is no model to look into.

        Raises:
            UserError: always.
        """
        raise UserError("backend: vllm serves checkpoints, so no method can look into the model; use backend: local")

    def close(self) -> None:
        """End the engine and remove the folder."""
        try:
            self._stop()
        finally:
            self._checkpoints.close()

    def _answer(self, chunk: Sequence[Request], mode: str | Composer) -> Outcome:
        failures: dict[int, str] = {}
        tracebacks: dict[int, str] = {}
        served: dict[int, Served | None] = {}
        for request in chunk:
            try:
                check_tokens(request.prompt.token_ids, self._vocabulary)
                served[request.id] = self._written(request.composition, mode)
            except UserError as error:
                failures[request.id] = str(error)
            except (CompositionError, SafetensorError, OSError) as error:
                failures[request.id] = f"its composition could not be written: {error}"
            except Exception as error:  # a user's own composer may raise anything
                if is_broken_device(error):
                    raise broken_device(error) from error
                failures[request.id] = f"its composition could not be written: {one_line_of(error)}"
                tracebacks[request.id] = "".join(traceback.format_exception(error))
        ready = [request for request in chunk if request.id in served]
        if not ready:
            return Outcome(failures=failures, tracebacks=tracebacks)
        compositions = [served[request.id] for request in ready]
        engine = self._engine_for(max((composition.rank for composition in compositions if composition), default=0))
        try:
            rows = engine.generate([request.prompt.token_ids for request in ready], compositions)
        except EngineError as error:
            self._stop()  # the next chunk gets a new engine
            failures |= dict.fromkeys([request.id for request in ready], str(error))
            return Outcome(failures=failures, tracebacks=tracebacks)
        answers = {
            request.id: answer_of(row, self._tokenizer, self._answer_end)
            for request, row in zip(ready, rows, strict=True)
        }
        return Outcome(answers, failures, tracebacks)

    def _written(self, composition: Composition, mode: str | Composer) -> Served | None:
        """The checkpoint of a composition, written now if the folder has no such checkpoint.

        None: the composition has no adapters.
        """
        if not composition.weights:
            return None
        return self._checkpoints.written(key_of(composition), composition, mode)

    def _engine_for(self, rank: int) -> Engine:
        """An engine that serves this rank: the running engine, or a new engine if a sweep needs a larger rank."""
        if self._engine is not None and self._engine.max_rank < rank:
            self._stop()
        if self._engine is None:
            self._engine = self._start(allowed_rank(rank))
        return self._engine

    def _stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()


def plan_chunks(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Requests in chunks of `size`. Rows without adapters have chunks of their own. Equal compositions are neighbours.

    vLLM 0.32 on a CPU answers a row without a checkpoint wrongly if another row of the batch has a checkpoint: the row
    then gets the checkpoint of index -1, which is the last.
    """
    plain = sorted((request for request in requests if not request.composition.weights), key=lambda r: r.id)
    composed = [request for request in requests if request.composition.weights]
    composed.sort(key=lambda request: (key_of(request.composition), request.id))
    return [group[start : start + size] for group in (plain, composed) for start in range(0, len(group), size)]


def key_of(composition: Composition) -> Key:
    """The key of a composition within its mode: adapters and weights, whatever their order."""
    return tuple(sorted(composition.weights.items()))


def rank_of_largest(writer: CompositionWriter, adapters: int) -> int:
    """The rank that vLLM allows for any mixture of this many adapters."""
    return allowed_rank(sum(sorted(writer.ranks.values())[-adapters:]))


def engine_arguments(source: ModelSource, max_rank: int, longest: int) -> dict[str, Any]:
    """The arguments of every engine of vLLM.

    Args:
        max_rank: the highest rank of a checkpoint.
        longest: maximum length of a prompt with its answer, in tokens.
    """
    from vllm.platforms import current_platform

    settings = source.generation
    return {
        "model": str(source.base),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": source.dtype,
        "tensor_parallel_size": torch.cuda.device_count() if source.device == BALANCED else 1,
        "max_model_len": longest,
        "max_num_seqs": settings.batch_size,
        "enable_lora": True,
        # Each checkpoint has a slot in the memory of the device, in every linear layer. Other rows wait for a slot.
        "max_loras": min(settings.batch_size, LORAS),
        "max_lora_rank": max_rank,
        # Rows rarely share a composition, and a prefix is not shared between compositions.
        "enable_prefix_caching": False,
        # On a CPU, compiling takes more time than compiled code saves, and needs a compiler.
        "enforce_eager": current_platform.is_cpu(),
    }


def lora_request(served: Served) -> LoRARequest:
    """A composition on disk, in vLLM's words."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(str(served.number), served.number, str(served.path))


@contextmanager
def starting(source: ModelSource) -> Iterator[None]:
    """Free the memory of a GPU that torch keeps for later use, and tell the reason if vLLM does not start.

    Raises:
        UserError: vLLM does not start.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # vLLM takes nearly all memory, and torch still holds the encoder's
    try:
        yield
    except Exception as error:  # vLLM may raise anything
        raise UserError(f"vLLM does not start on {source.base}: {shortened(str(error), REASON_LENGTH)}") from error


@contextmanager
def failing_as_engine() -> Iterator[None]:
    """Give every error of vLLM one class.

    Raises:
        EngineError: vLLM failed.
    """
    try:
        yield
    except Exception as error:  # vLLM's errors have no common class but this one
        reason = shortened(str(error) or type(error).__name__, REASON_LENGTH)
        raise EngineError(f"vLLM failed: {reason}") from error


def load(profile: Profile, benchmark: Benchmark) -> VllmBackend:
    """The vLLM backend of a profile.

    Raises:
        UserError: vLLM is not installed or does not start, vLLM is built for another device than the profile's, or an
            adapter cannot be composed exactly.
    """
    check_vllm(profile)
    parts = read_parts(model_source(profile, benchmark))
    size, k = parts.settings.batch_size, profile.retrieval.k
    return VllmBackend(
        partial(VllmEngine, parts),
        parts.writer,
        parts.tokenizer,
        size,
        k,
        parts.limits.vocabulary,
        parts.settings.answer_end,
    )


def read_parts(source: ModelSource) -> Parts:
    """Read the parts of a base and its adapters that vLLM's engines need, and verify the adapters.

    Raises:
        UserError: the base is of a kind that vLLM does not serve here, or has fewer positions than the settings ask
            for; or an adapter cannot be composed exactly.
    """
    base, tokenizer = skeleton(source.base), load_tokenizer(source.base)
    refuse_encoder_decoder(base.config, "profiles with backend: vllm")
    limits = limits_of(base)
    check_settings(limits, source.generation)
    writer = CompositionWriter(base, source.torch_dtype)
    try:
        for name, folder in source.adapters.items():
            writer.load_adapter(folder, name)
    except AdapterError as error:
        raise UserError(str(error)) from error
    eos_ids = eos_token_ids(base.generation_config, tokenizer, base.config)
    return Parts(source, tokenizer, limits, eos_ids, writer)


def check_vllm(profile: Profile) -> None:
    """Check that vLLM is installed and computes on the profile's device.

    Raises:
        UserError: vLLM is not installed, or computes on another device.
    """
    os.environ.setdefault(
        "VLLM_LOGGING_LEVEL", "ERROR"
    )  # vLLM reads this variable on import; vLLM's log would disturb the progress bars
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(
            "backend: vllm needs the vllm extra: pip install -e peft/ -e '.[vllm]' in an environment of its own "
            f"({error}); or choose backend: local"
        ) from error
    device = "cuda" if profile.torch_device == BALANCED else profile.torch_device
    if device not in (current_platform.device_type, f"{current_platform.device_type}:0"):
        found = current_platform.device_type or "no device of this machine"
        raise UserError(
            f"profile {profile.name}: device is {profile.torch_device}, and the vLLM installed here computes on "
            f"{found} (the first one, unless CUDA_VISIBLE_DEVICES says otherwise); "
            "for a CPU there is scripts/backends/test_vllm.sh"
        )
