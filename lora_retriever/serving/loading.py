"""Loading a `Service`: everything that a profile names, for answering any input. No row of a benchmark is needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from threading import Lock

from rich.console import Console

from lora_retriever.backends.base import is_broken_device
from lora_retriever.backends.vllm import check_vllm, read_parts
from lora_retriever.data.rows import read_rows
from lora_retriever.data.sources import hash_source
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich, quoted
from lora_retriever.experiment.benchmark import folder_of, folders_of_adapters, pool_of
from lora_retriever.experiment.checks import benchmark_problems
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import hash_path
from lora_retriever.generation.loading import ModelSource, load_generator
from lora_retriever.generation.loop import Loop
from lora_retriever.generation.prompt import files_wanted
from lora_retriever.hub import ENCODER_WANTED
from lora_retriever.progress import quieten_transformers
from lora_retriever.retrieval.embedding_cache import cached
from lora_retriever.retrieval.encoders import Embeddings, Encoder, load_encoder
from lora_retriever.retrieval.encoding import encode_texts
from lora_retriever.retrieval.own import find_encoder
from lora_retriever.running.models import check_adapters, inspect_adapters, inspect_base, without_adapter_warnings
from lora_retriever.serving.changes import Changes, read_changes
from lora_retriever.serving.learning import Learning, Twin
from lora_retriever.serving.naming import learns
from lora_retriever.serving.pool import LivePool, QueryEncoder
from lora_retriever.serving.service import Answerer, Service
from lora_retriever.serving.vllm_batcher import VllmBatcher, is_broken_engine
from lora_retriever.serving.vllm_loop import VllmLoop


def load_service(
    profile: Profile,
    console: Console,
    observe: Callable[[int, int, float], None] = lambda rows, waiting, seconds: None,
    results: Path | None = None,
) -> Service:
    """Load the base, the adapters and the encoder of a profile, fit the index, and let `serve.methods` learn.

    Args:
        results: the results folder that has the learned folders. None: `results/PROFILE`.

    Raises:
        UserError: something is missing, or cannot be loaded.
    """
    import torch

    if profile.backend not in ANSWERERS:
        reason = f"backend: {profile.backend} answers no single input; set one of {', '.join(ANSWERERS)}"
        raise UserError(f"profile {profile.name}: {reason}")
    if profile.backend == "vllm":
        check_vllm(profile)
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    quieten_transformers()
    notes: list[str] = []
    rows = [] if isinstance(profile.data.pool, str) else read_rows(profile.rows_source)  # a drawn pool lacks these
    changes = read_changes(profile)
    entries = changes.applied(pool_of(profile, rows, notes))
    if problems := benchmark_problems(profile, [], entries):
        raise UserError("\n".join([f"profile {profile.name}: the pool is inconsistent:", *problems]))
    folders = {
        **folders_of_adapters(profile, [entry for entry in entries if entry.model_name not in changes.folders]),
        **changes.folders,
    }
    base = folder_of(profile, profile.base.location, profile.base.revision, files_wanted(profile.generation.template))
    with console.status("looking at the base model and the adapters"):
        found = inspect_base(base, profile.generation)
        adapters = inspect_adapters(folders, found.skeleton)
        check_adapters(adapters)
    for warning in (*notes, *found.warnings, *adapters.warnings):
        console.print(for_rich(f"warning: {warning}"), soft_wrap=True)
    source = ModelSource(
        base,
        folders,
        profile.generation,
        profile.dtype,
        profile.torch_device,
        profile.adapters.memory,
        profile.threads,
    )
    encoders = None if profile.encoder is None else Encoders(profile)
    pool = LivePool(entries, profile.find_scorer, _no_encoder if encoders is None else encoders.encode_samples)
    with console.status("encoding the pool"):
        _prepare(profile, pool)
    queries = None if encoders is None else encoders.queries
    from_file = isinstance(profile.data.pool, str) and changes == Changes()
    pool_hash = hash_source(profile.pool_source) if from_file else None
    learning = partial(Learning, profile, base, results or Path("results") / profile.name, pool, queries, pool_hash)
    with console.status("loading the base model and the adapters"), without_adapter_warnings():
        answerer = ANSWERERS[profile.backend](profile, source, learning)
    service = Service(profile, answerer, pool, queries, folders, observe)
    _learn(service, console)
    return service


def _local_answerer(profile: Profile, source: ModelSource, learning: Callable[..., Learning]) -> Answerer:
    """A model in this process."""
    generator = load_generator(source)
    loop = Loop(
        generator, profile.serve.tokens, read_tokens=profile.serve.read_tokens, steps=1, is_fatal=is_broken_device
    )
    twin = Twin(generator, profile.adapters.memory)
    return Answerer(generator, loop, generator.model, is_broken_device, lambda folders: learning(twin, folders))


def _vllm_answerer(profile: Profile, source: ModelSource, learning: Callable[..., Learning]) -> Answerer:
    """vLLM in this process. No method learns.

    Raises:
        UserError: methods are to learn, vLLM does not start, or vLLM cannot serve the adapters.
    """
    if profile.serve.methods:
        raise UserError(f"profile {profile.name}: serve.methods: no method learns with backend: vllm; leave it out")
    parts = read_parts(source)
    loop = VllmLoop(VllmBatcher(parts, profile), parts)
    return Answerer(parts, loop, loop, is_broken_engine)


ANSWERERS = {"local": _local_answerer, "vllm": _vllm_answerer}
"""The function that loads the answerer, by the name of the backend."""


def settle() -> None:
    """Let the garbage collector skip the objects that are loaded now and stay until the process ends. With these
    objects, each full collection took 0.4 s.

    Called once, by a process that does nothing but serve.
    """
    gc.collect()
    gc.freeze()


class Encoders:
    """The profile's encoder, for inputs and for samples. The cache on disk knows the pool's samples, never inputs.

    Attributes:
        queries: encodes inputs.
    """

    def __init__(self, profile: Profile) -> None:
        """Find the encoder, which is loaded when a text has to be encoded.

        Raises:
            UserError: there is no such encoder.
        """
        settings = profile.encoder
        assert settings is not None
        load: Callable[[], Encoder]
        self._of_samples: Callable[[], Encoder]
        if settings.is_own:
            load = cache(lambda: _OneByOne(find_encoder(settings.location, profile.folder)))
            self._of_samples = load
        else:
            folder = folder_of(profile, settings.location, settings.revision, ENCODER_WANTED)
            layout, instruction, device = settings.layout, settings.instruction, profile.encoder_device
            load = cache(lambda: _OneByOne(load_encoder(folder, layout, instruction, settings.batch_size, device)))
            kept = cached(load, hash_path(folder), layout, instruction, device) if settings.cache else None
            self._of_samples = load if kept is None else lambda: kept
        self.queries = QueryEncoder(load)

    def encode_samples(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings [n, dim] of samples' texts, float32.

        Raises:
            ValueError: the encoder gives no embeddings.
            UserError: the encoder cannot be loaded, or fails on a text.
        """
        return encode_texts(self._of_samples(), texts)


class _OneByOne:
    """An encoder that several threads may use."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = Lock()

    def encode(self, texts: Sequence[str]) -> Embeddings:
        with self._lock:
            return self._encoder.encode(texts)


def _no_encoder(texts: Sequence[str]) -> Embeddings:
    raise UserError("this server has no encoder")


def _learn(service: Service, console: Console) -> None:
    """Let the methods of `serve.methods` learn now, so that no request waits for this."""
    profile = service.profile
    for name in profile.serve.methods:
        method = service.methods.get(name)
        if method is None or not learns(method):
            known = ", ".join(name for name, method in service.methods.items() if learns(method))
            raise UserError(f"profile {profile.name}: serve.methods: {quoted(name)} does not learn (known: {known})")
        assert service.learning is not None, "other backends refuse serve.methods"
        with console.status(f"{name} is learning"):
            service.learning.learn(method)


def _prepare(profile: Profile, pool: LivePool) -> None:
    """Fit the index of the profile's scorer now, so that no request waits for this."""
    if not pool.current.entries or (profile.encoder is None and profile.scorer.needs_embeddings):
        return
    try:
        pool.index(pool.current, profile.retrieval.scorer)
    except ValueError as error:
        raise UserError(f"profile {profile.name}: retrieval: {error}") from error
