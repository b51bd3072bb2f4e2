"""Profiles: everything a run depends on, in one validated YAML file.

A *location* in a profile is a folder or file if it begins with `.`, `/` or `~` (relative ones start at the profile's
own folder), and a Hub id otherwise. `{adapter}` in the adapters' location stands for the adapter's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator

from lora_retriever.encoders import Layout
from lora_retriever.errors import UserError
from lora_retriever.methods import Method, find_methods
from lora_retriever.methods.paper import METHODS as PAPER
from lora_retriever.prompt import TEMPLATES
from lora_retriever.scorers import SCORERS

PROFILES = Path(str(files("lora_retriever"))) / "profiles"
BALANCED = "balanced"  # accelerate's word for a model spread evenly over all GPUs
DEFAULT_METHODS = tuple(method.name for method in PAPER)
INSTRUCTION = "Represent the sentence for similar task retrieval: "


class Section(BaseModel):
    """A part of a profile: unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Checkpoint(Section):
    """Where a model lies, and at which commit if that is the Hub."""

    location: str
    revision: str | None = None


class AdaptersSection(Checkpoint):
    """Where the adapters lie, and how many of them may be in memory.

    Attributes:
        memory: bytes that adapters may take on a device, such as `8GiB`; the least recently used make room for others.
            None keeps all of them there.
    """

    memory: ByteSize | None = None


class EncoderSection(Checkpoint):
    """The sentence encoder, the text before every input, and the layout of its checkpoint.

    Attributes:
        cache: whether embeddings are kept on disk and found again (`embedding_cache`).
    """

    layout: Layout = "auto"
    instruction: str = INSTRUCTION
    batch_size: int = Field(16, ge=1)
    cache: bool = True


class DataSection(Section):
    """The benchmark's rows and the pool: two files."""

    rows: str
    pool: str


class RetrievalSection(Section):
    """How adapters are found, how many of them mixture and fusion take, and with which weights.

    Attributes:
        temperature: None gives the adapters of a row equal weights, as the paper does; a number weights them by their
            scores (`methods.paper.weights_of`).
    """

    scorer: str = "hybrid"
    k: int = Field(3, ge=1)
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return _one_of(name, SCORERS, "scorer")


class GenerationSection(Section):
    """Decoding is greedy.

    Attributes:
        batch_size: rows in a batch, at most.
        batch_tokens: tokens in a batch, at most, with padding and with the new ones: what bounds the memory for keys
            and values. None bounds the rows alone.
    """

    template: str = "alpaca"
    max_prompt_tokens: int = Field(512, ge=1)
    max_new_tokens: int = Field(50, ge=1)
    batch_size: int = Field(8, ge=1)
    batch_tokens: int | None = Field(None, ge=1)
    pad_token_id: int | None = None

    @field_validator("template")
    @classmethod
    def _known(cls, template: str) -> str:
        return (
            template if "{inputs}" in template else _one_of(template, TEMPLATES, "template (or a text with {inputs})")
        )

    @property
    def template_text(self) -> str:
        """The template itself, with `{inputs}` in it."""
        return TEMPLATES.get(self.template, self.template)

    def rows_that_fit(self, longest: int) -> int:
        """How many rows a batch may have whose longest prompt has `longest` tokens; at least one."""
        if self.batch_tokens is None:
            return self.batch_size
        return max(1, min(self.batch_size, self.batch_tokens // (longest + self.max_new_tokens)))


class RaySection(Section):
    """The actors of `backend: ray`.

    Attributes:
        address: the cluster's. None takes the one that Ray finds (RAY_ADDRESS, or begun on this machine by `ray start`)
            and else makes one of this machine, for the run alone; `local` always makes one.
        workers: actors, each with a model of its own. None takes one for every `gpus` of the cluster; on CPUs, one.
        cpus: CPUs of a worker, and on a CPU its threads; fractions let workers share one.
        gpus: GPUs of a worker, fractions too. None takes one unless the device is a CPU. With `device: balanced` the
            model is spread over all GPUs of its worker.
    """

    address: str | None = None
    workers: int | None = Field(None, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float | None = Field(None, ge=0)


class Profile(Section):
    """One profile, validated.

    Attributes:
        folder: where relative locations start: the profile's own.
        note: what is printed under every table.
        device: a device of torch's; `auto`, a GPU where there is one; or `balanced`, all GPUs, for a base model larger
            than one of them.
        threads: torch's on a CPU; None takes as many as there are cores.
        seed: of Python's, numpy's and torch's random numbers, set before every run.
        backend: what answers: this process (`local`), vLLM, or actors on any number of machines (`ray`).
        methods: by name; `all` for every registered one, `paper` for the paper's eight configurations, `module:object`
            for a user's own, whose module is looked for in the profile's folder as well.
        options: of methods, by name: `{lorahub: {steps: 20}}`; an out-of-domain twin has its method's.
        metrics: folders whose own metrics may run where rows name them; code in any other folder never runs.
        reuse_answers: whether a row takes its answer from another run of the results folder that gave the same prompt
            the same composition.
    """

    name: str
    folder: Path
    note: str = ""
    base: Checkpoint
    adapters: AdaptersSection
    encoder: EncoderSection
    data: DataSection
    retrieval: RetrievalSection = RetrievalSection()
    generation: GenerationSection = GenerationSection()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    backend: Literal["local", "vllm", "ray"] = "local"
    ray: RaySection = RaySection()
    reuse_answers: bool = True
    methods: tuple[str, ...] = DEFAULT_METHODS
    options: dict[str, dict[str, Any]] = {}
    metrics: tuple[str, ...] = ()

    def find_methods(self, names: Sequence[str] | None = None) -> list[Method]:
        """The profile's methods, or those of other names, with the profile's options.

        Raises:
            UserError: a method or an option is unknown, or a user's own cannot be loaded.
        """
        return find_methods(self.methods if names is None else names, self.options, self.folder)

    @property
    def settings(self) -> dict[str, Any]:
        """What a sweep can vary, by name, in the order of a run's name."""
        retrieval = self.retrieval
        return {
            "k": retrieval.k,
            "scorer": retrieval.scorer,
            "temperature": retrieval.temperature,
            "seed": self.seed,
        }

    def replaced(self, settings: Mapping[str, Any], source: str) -> Profile:
        """The profile with other values of some `settings`, checked as those of a file; `source` is who set them.

        Raises:
            UserError: a value is wrong.
        """
        content = self.model_dump()
        for name, value in settings.items():
            section = content["retrieval"] if name in RetrievalSection.model_fields else content
            section[name] = value
        return _validated(content, source)

    @property
    def torch_device(self) -> str:
        """Where the base model goes: `cuda` where there is one, unless the profile names a device, or `balanced`.

        Raises:
            UserError: the profile asks for CUDA devices, and torch finds none.
        """
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if (self.device.startswith("cuda") or self.device == BALANCED) and not torch.cuda.is_available():
            raise UserError(f"profile {self.name}: device is {self.device}, but torch finds no CUDA device; say cpu")
        return self.device

    @property
    def encoder_device(self) -> str:
        """Where the encoder goes: to the base model, or to the first GPU if that is spread over all.

        Raises:
            UserError: as for `torch_device`.
        """
        return "cuda" if self.torch_device == BALANCED else self.torch_device

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's own."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def local_path(self, location: str) -> Path | None:
        """The file or folder a location means, there or not; None for a Hub id."""
        if not location.startswith((".", "/", "~")):
            return None
        return self._file(location)

    def adapter_location(self, adapter: str) -> str:
        """The location of one adapter."""
        return self.adapters.location.replace("{adapter}", adapter)

    @property
    def rows_path(self) -> Path:
        """The file of the benchmark's rows."""
        return self._file(self.data.rows)

    @property
    def pool_path(self) -> Path:
        """The file of the pool."""
        return self._file(self.data.pool)

    @property
    def metric_folders(self) -> tuple[Path, ...]:
        """The folders whose own metrics may run."""
        return tuple(map(self._file, self.metrics))

    def _file(self, location: str) -> Path:
        return (self.folder / Path(location).expanduser()).resolve()


def load_profile(name_or_file: str) -> Profile:
    """The profile of this name that comes with the package, or the one in this YAML file.

    Raises:
        UserError: there is none, it is not YAML, or a field is missing, unknown or wrong; the message names the field.
    """
    bundled = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}
    path = bundled.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        raise UserError(f"no profile {name_or_file!r}: known are {', '.join(bundled)}, or give the path of a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected fields and values, found {type(content).__name__}")
    profile = _validated({"name": path.stem, **content, "folder": path.resolve().parent}, str(path))
    try:
        found = profile.find_methods(["all", *profile.methods])
    except UserError as error:
        raise UserError(f"{path}: methods: {error}") from error
    known = dict.fromkeys(method.name.removesuffix("_ood") for method in found)  # a twin has its method's options
    for name in profile.options:
        if name not in known:
            raise UserError(f"{path}: options: no method {name!r} (known: {', '.join(known)})")
    return profile


def _validated(content: dict[str, Any], source: str) -> Profile:
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise UserError(f"{source}: {problems}") from error


def _problem(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    reason = {"missing": "is missing", "extra_forbidden": "is no field of a profile"}.get(error["type"])
    return f"{field}: {reason or error['msg'].removeprefix('Value error, ')}"


def _one_of(name: str, known: Any, what: str) -> str:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r} (known: {', '.join(known)})")
    return name
