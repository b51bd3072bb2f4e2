"""Profiles: everything that decides the answers of a run, in one validated YAML file.

A *location* in a profile that begins with `.`, `/` or `~` is a folder or a file. A relative location starts at the
profile's own folder. Any other location is a Hub id. `{adapter}` in the location of the adapters stands for an
adapter's name. The locations of `data` are files or folders, or data sets on the Hub if they begin with `hub:`.
`{official}` in them stands for the folder of the official benchmark, which `fetch` writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ByteSize, ConfigDict, Field, ValidationError, field_validator, model_validator

from lora_retriever.data.fetching import official_folder
from lora_retriever.data.sources import HUB, DataSource
from lora_retriever.data.tables import COLUMN_FIELDS, DEFAULT_FIELDS
from lora_retriever.data.yaml_files import read_yaml
from lora_retriever.errors import UserError
from lora_retriever.escaping import brief, quoted
from lora_retriever.experiment.overrides import Keys, names_of, parse, put
from lora_retriever.files import MAX_NAME_BYTES, is_location, safe_name
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.own_objects import is_own
from lora_retriever.retrieval.encoders import Layout
from lora_retriever.retrieval.own import find_scorer
from lora_retriever.retrieval.scorers import SCORERS, Scorer
from lora_retriever.settings import MAX_COUNT, MAX_PROBLEMS, MAX_THREADS, Section, one_of, problems_of

PROFILES = Path(str(files("lora_retriever"))) / "profiles"
ADAPTER = "{adapter}"
"""The part of the adapters' location that stands for an adapter's name."""
OFFICIAL = "{official}"
"""The part of a data file's location that stands for the folder of the official benchmark."""
MAX_LOCATION = 4096
"""Maximum length of a location, in characters."""
BALANCED = "balanced"
"""The device of a model that accelerate spreads evenly over all GPUs."""
DEVICES = re.compile(r"auto|balanced|cpu|(cuda|mps|xpu|npu|hpu)(:\d{1,3})?")
INSTRUCTION = "Represent the sentence for similar task retrieval: "
"""The text before every input of the paper's encoder."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Device files of the drivers behind torch's CUDA devices on Linux: NVIDIA's, WSL's, AMD's."""


def _location(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write a file, a folder or a Hub id")
    if len(text) > MAX_LOCATION or any(len(part.encode()) > MAX_NAME_BYTES for part in text.split("/")):
        raise ValueError(f"is no path: {text[:60]}… is too long")
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {str(error).lower().rstrip('.')}") from error
    return text


Location = Annotated[str, AfterValidator(_location)]
"""A location as the module's docstring describes it."""


class Checkpoint(Section):
    """Where a model lies.

    Attributes:
        location: a folder, or a Hub id.
        revision: the commit of a Hub repository. None: the newest.
    """

    location: Location
    revision: str | None = Field(None, min_length=1, max_length=MAX_NAME_BYTES)


class AdaptersSection(Checkpoint):
    """Where the adapters lie, and how many of them may be in memory.

    Attributes:
        memory: maximum memory of adapters on a device, such as `8GiB`. The least recently used adapters are moved out
            when other adapters are needed. None: all adapters stay on the device.
    """

    memory: ByteSize | None = None


class EncoderSection(Checkpoint):
    """The sentence encoder: a checkpoint, or an encoder of a user's own by `module:object`.

    An encoder of a user's own is given the texts as they are, and its embeddings are not kept on disk: no other field
    applies to it.

    Attributes:
        layout: the layout of the encoder's checkpoint.
        instruction: the text before every input.
        batch_size: number of texts in a batch.
        cache: whether embeddings are kept on disk and found again.
    """

    layout: Layout = "auto"
    instruction: str = INSTRUCTION
    batch_size: int = Field(16, ge=1, le=MAX_COUNT)
    cache: bool = True

    @property
    def is_own(self) -> bool:
        """Whether the encoder is a user's own."""
        return is_own(self.location)

    @model_validator(mode="after")
    def _has_only_fields_that_apply(self) -> EncoderSection:
        set_here = [
            name
            for name, field in EncoderSection.model_fields.items()
            if name != "location" and getattr(self, name) != field.default
        ]
        if self.is_own and set_here:
            raise ValueError(f"{self.location} is an encoder of your own, to which {', '.join(set_here)} do not apply")
        return self


def _texts_of(known: Sequence[str]) -> AfterValidator:
    """A check that texts are given for known fields of rows only."""

    def check(texts: dict[str, str] | None) -> dict[str, str] | None:
        for name in texts or {}:
            one_of(name, known, "field of rows")
        return texts

    return AfterValidator(check)


Columns = Annotated[dict[str, str], _texts_of(COLUMN_FIELDS)]
Defaults = Annotated[dict[str, str], _texts_of(DEFAULT_FIELDS)]


class PoolSection(Section):
    """A pool that is drawn from training data: some samples of each task.

    A sample whose input is also a row's input is never drawn.

    Attributes:
        from_: the file or folder of the training data, or `hub:` and a Hub id. A file of a pool is training data, too.
        samples: maximum number of samples of a task.
        seed: the seed of the draw.
        split: the split of a folder or of a data set on the Hub. None: the only split.
        subset: the subset of a data set that has several.
        revision: the commit of a data set on the Hub. None: the newest.
        columns: the column of each field, as in `data.columns`. None: those of `data.columns`.
        defaults: values of fields, as in `data.defaults`. None: those of `data.defaults`.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: Location = Field(alias="from")
    samples: int = Field(20, ge=1, le=MAX_COUNT)
    seed: int = Field(0, ge=0, lt=2**32)
    split: str | None = Field(None, min_length=1)
    subset: str | None = Field(None, min_length=1)
    revision: str | None = Field(None, min_length=1, max_length=MAX_NAME_BYTES)
    columns: Columns | None = None
    defaults: Defaults | None = None


class DataSection(Section):
    """The benchmark's rows and the pool: where they are, and how the fields of the rows are found there.

    Attributes:
        rows: the file or folder of the rows, or `hub:` and a Hub id.
        pool: the file or folder of the pool, or `hub:` and a Hub id; or a mapping, which draws the pool from training
            data, such as `{from: train.csv, samples: 20, seed: 0}`.
        split: the split of a folder of rows or of a data set on the Hub. None: the only split.
        subset: the subset of a data set that has several. None: the only or the default one.
        revision: the commit of a data set on the Hub. None: the newest.
        columns: the name that the data has for a field of the rows, such as `{inputs: question, targets: answer}`.
        defaults: the value of a field that the data does not have, such as `{metric: em, domain: mine}`.
    """

    rows: Location
    pool: Location | PoolSection
    split: str | None = Field(None, min_length=1)
    subset: str | None = Field(None, min_length=1)
    revision: str | None = Field(None, min_length=1, max_length=MAX_NAME_BYTES)
    columns: Columns = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=dict)

    @field_validator("pool", mode="before")
    @classmethod
    def _pool(cls, pool: Any) -> Any:
        if isinstance(pool, str):
            return _location(pool)
        if not isinstance(pool, dict):
            raise ValueError("write a file, a folder, a Hub id, or a mapping such as {from: train.csv, samples: 20}")
        try:
            return PoolSection.model_validate(pool)
        except ValidationError as error:
            raise ValueError("; ".join(problems_of(error, of="data.pool"))) from error

    @property
    def reading(self) -> dict[str, Any]:
        """Everything that decides the content of the rows, apart from the hash of their file. Empty: nothing else."""
        fields = self.model_dump(include={"split", "subset", "columns", "defaults"})
        return {name: value for name, value in fields.items() if value}


class RetrievalSection(Section):
    """How adapters are found for a row, how many adapters mixture and fusion use, and with which weights.

    Attributes:
        scorer: the name of a scorer, or `module:object` for a user's own. The module is also looked for in the
            profile's folder.
        k: number of adapters of a row.
        temperature: None gives the adapters of a row equal weights, as the paper does. A number T weights them by
            exp(cosine / T) or by probability^(1 / T), as the scorer declares (`Scorer.weights`).
    """

    scorer: str = "hybrid"
    k: int = Field(3, ge=1, le=MAX_COUNT)
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if is_own(name) else one_of(name, SCORERS, "scorer")


class RaySection(Section):
    """The workers of `backend: ray`.

    Attributes:
        address: the address of the cluster. None: the cluster that Ray finds (by RAY_ADDRESS, or started on this
            machine by `ray start`), or else a new cluster on this machine for this evaluation. `local`: always a new
            cluster on this machine.
        workers: number of workers, each with a model of its own. None: one worker for every `gpus` of the cluster; on
            CPUs, one worker.
        cpus: CPUs of a worker. Fractions let workers share a CPU.
        gpus: GPUs of a worker. Fractions let workers share a GPU. None: one GPU, or none if the device is a CPU. With
            `device: balanced` the model is spread over all GPUs of its worker.
    """

    address: str | None = None
    workers: int | None = Field(None, ge=1, le=MAX_COUNT)
    cpus: float = Field(1, ge=0, le=MAX_COUNT)
    gpus: float | None = Field(None, ge=0, le=MAX_COUNT)


class ServeSection(Section):
    """Limits of the server, `lora-retriever serve`.

    Attributes:
        adapters: the folder below which adapters lie that clients may add. None: no adapter can be added.
        methods: methods that learn before the server takes requests. Other methods that learn begin when a client first
            asks for them.
        max_new_tokens: maximum length of an answer that a client may ask for, in tokens.
        answers: maximum number of answers of one request: prompts times `n`.
        waiting: maximum number of answers that wait or are made. More are refused with status 429.
        tokens: maximum number of tokens of all answers that are made at once, their prompts included. This number
            bounds the memory for keys and values.
        read_tokens: maximum number of tokens of waiting prompts that are read between two tokens of the answers that
            are made. A larger number gives more answers a second, and streams that pause longer.
        rank: highest rank of a composition that `backend: vllm` serves. vLLM's memory for adapters grows with this
            number. None: the rank of the largest mixtures of `retrieval.k` adapters.
        seconds: maximum time of a request, in seconds.
        body: maximum size of a request, such as `1MiB`.
    """

    adapters: Location | None = None
    methods: tuple[str, ...] = ()
    max_new_tokens: int = Field(512, ge=1, le=MAX_COUNT)
    answers: int = Field(64, ge=1, le=MAX_COUNT)
    waiting: int = Field(256, ge=1, le=MAX_COUNT)
    tokens: int = Field(65536, ge=1, le=2**31)
    read_tokens: int = Field(2048, ge=1, le=2**31)
    rank: int | None = Field(None, ge=1, le=512)
    seconds: float = Field(120, gt=0, le=86400, allow_inf_nan=False)
    body: ByteSize = ByteSize(2**20)


class Profile(Section):
    """One validated profile.

    Attributes:
        name: the name of the profile, and so of the results folder `results/NAME`.
        folder: the profile's own folder, where relative locations start.
        encoder: None if no method of the profile needs embeddings.
        note: a text that is printed under every table.
        dtype: the dtype of base and adapters. Many CPUs compute slowly in 16 bits.
        device: a device of torch; `auto`: a GPU if there is one; or `balanced`: all GPUs, for a base model that is
            larger than one GPU.
        threads: torch's threads on a CPU. None: as many as there are cores.
        seed: the seed of the random numbers of Python, numpy and torch. It is set before every run.
        backend: what answers prompts: this process (`local`), vLLM (`vllm`), or workers on any number of machines
            (`ray`).
        methods: names of methods; `all` for every registered method, `paper` for the paper's eight methods,
            `module:object` for a user's own method. The module is also looked for in the profile's folder.
        options: options of methods, by the method's name: `{lorahub: {steps: 20}}`. The out-of-domain variant of a
            method has the same options.
        procedure: the procedure of rows that name none: how a row becomes prompts, and the answers its prediction. A
            name, or `module:object` for a user's own. The module is also looked for in the profile's folder.
        procedure_options: options of procedures, by the procedure's name: `{steps: {max_steps: 8}}`.
        metrics: folders with a user's own metrics, which rows may name. Code in any other folder never runs.
        reuse_answers: whether a row takes its answer from another run of the results folder that gave the same prompt
            the same composition.
    """

    name: str
    folder: Path
    note: str = ""
    base: Checkpoint
    adapters: AdaptersSection
    encoder: EncoderSection | None = None
    data: DataSection
    retrieval: RetrievalSection = RetrievalSection()
    generation: GenerationSection = GenerationSection()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    seed: int = Field(0, ge=0, lt=2**32)
    backend: Literal["local", "vllm", "ray"] = "local"
    ray: RaySection = RaySection()
    serve: ServeSection = ServeSection()
    reuse_answers: bool = True
    methods: tuple[str, ...] = Field(("paper",), min_length=1)
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    procedure: str = Field("plain", min_length=1)
    procedure_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    metrics: tuple[Location, ...] = ()

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        if not DEVICES.fullmatch(device):
            raise ValueError(f"unknown device {quoted(device)}; write auto, cpu, cuda, cuda:1, mps, xpu or balanced")
        return device

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        try:
            return safe_name(name, "profile")
        except UserError as error:
            raise ValueError(str(error)) from error

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a sweep can vary, by name, in the order of a run's name."""
        retrieval = self.retrieval
        return {
            "k": retrieval.k,
            "scorer": retrieval.scorer,
            "temperature": retrieval.temperature,
            "seed": self.seed,
            "procedure": self.procedure,
        }

    def replaced(self, settings: Mapping[str, Any], source: str) -> Profile:
        """The profile with other values of some `settings`, checked like a file's values. `source` says who set them.

        Raises:
            UserError: a value is wrong.
        """
        content = self.model_dump()
        for name, value in settings.items():
            section = content["retrieval"] if name in RetrievalSection.model_fields else content
            section[name] = value
        return _validated(content, source)

    def find_scorer(self, name: str) -> Scorer:
        """The scorer of a name that the profile may give: one of the project's, or a user's own.

        Raises:
            UserError: the scorer is unknown or cannot be loaded.
        """
        try:
            return find_scorer(name, self.folder)
        except UserError as error:
            raise UserError(f"profile {self.name}: {error}") from error

    @property
    def scorer(self) -> Scorer:
        """The profile's scorer.

        Raises:
            UserError: the scorer is a user's own and cannot be loaded.
        """
        return self.find_scorer(self.retrieval.scorer)

    @property
    def torch_device(self) -> str:
        """The device of the base model: the profile's; for `auto`, `cuda` if torch finds such a device, else `cpu`.

        Raises:
            UserError: the profile asks for a CUDA device that torch does not find.
        """
        if self.device == "auto":
            return "cuda" if has_gpu_driver() and cuda_is_available() else "cpu"
        if (self.device.startswith("cuda") or self.device == BALANCED) and not cuda_is_available():
            raise UserError(f"profile {self.name}: device is {self.device}, but torch finds no CUDA device; say cpu")
        index = self.device.partition("cuda:")[2]
        if index and int(index) >= cuda_device_count():
            raise UserError(
                f"profile {self.name}: device is {self.device}, but torch finds {cuda_device_count()} CUDA devices, "
                "counted from 0"
            )
        return self.device

    @property
    def encoder_device(self) -> str:
        """The device of the encoder: the base model's, or the first GPU if the base model is on all GPUs.

        Raises:
            UserError: as for `torch_device`.
        """
        return "cuda" if self.torch_device == BALANCED else self.torch_device

    def local_path(self, location: str) -> Path | None:
        """The file or folder that a location means, whether it exists or not. None: the location is a Hub id."""
        return self._file(location) if is_location(location) else None

    def adapter_location(self, adapter: str) -> str:
        """The location of one adapter."""
        return self.adapters.location.replace(ADAPTER, adapter)

    @property
    def rows_source(self) -> DataSource:
        """Where the benchmark's rows are, and how they are read."""
        data = self.data
        return DataSource(
            self._data_place(data.rows), data.split, data.subset, data.revision, data.columns, data.defaults
        )

    @property
    def pool_source(self) -> DataSource:
        """Where the pool is, or the training data from which the pool is drawn, and how it is read."""
        pool = self.data.pool
        if isinstance(pool, str):
            return DataSource(self._data_place(pool))
        columns = self.data.columns if pool.columns is None else pool.columns
        defaults = self.data.defaults if pool.defaults is None else pool.defaults
        return DataSource(
            self._data_place(pool.from_),
            pool.split,
            pool.subset,
            pool.revision,
            {name: column for name, column in columns.items() if name not in ("metric", "options")},
            {name: value for name, value in defaults.items() if name != "metric"},
        )

    @property
    def rows_path(self) -> Path:
        """The file or folder of the benchmark's rows, or `hub:` and a Hub id."""
        return self.rows_source.path

    @property
    def pool_path(self) -> Path:
        """The file or folder of the pool or of its training data, or `hub:` and a Hub id."""
        return self.pool_source.path

    @property
    def metric_folders(self) -> tuple[Path, ...]:
        """The folders whose own metrics may run."""
        return tuple(map(self._file, self.metrics))

    def _data_place(self, location: str) -> Path:
        if location.startswith(HUB):
            return Path(location)
        return self._file(location.replace(OFFICIAL, str(official_folder())) if OFFICIAL in location else location)

    def _file(self, location: str) -> Path:
        try:
            return (self.folder / Path(location).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, for example
            raise UserError(f"profile {self.name}: {location[:MAX_NAME_BYTES]!r} is no usable path: {error}") from error


def has_gpu_driver() -> bool:
    """Whether this machine may have a GPU. On Linux a GPU has a device file, so the check needs no torch."""
    return not Path("/proc").is_dir() or any(Path(file).exists() for file in GPU_DRIVERS)


def cuda_is_available() -> bool:
    """Whether torch finds a CUDA device."""
    import torch

    return torch.cuda.is_available()


def cuda_device_count() -> int:
    """The number of CUDA devices that torch finds."""
    import torch

    return torch.cuda.device_count()


def load_profile(name_or_file: str, values: Sequence[str] = ()) -> Profile:
    """The bundled profile of this name, or the profile in this YAML file.

    Args:
        values: values that replace those of the file, such as `retrieval.k=5`.

    Raises:
        UserError: there is no such profile, the file is not YAML, or a field is missing, unknown or wrong. The message
            names the field.
    """
    return read_profile(name_or_file, values).profile


@dataclass(frozen=True)
class ReadProfile:
    """A profile, and where its values come from.

    Attributes:
        path: the profile's file.
        content: the fields and values of the file.
        values: the values that replace values of the file, by the parts of the field's name.
    """

    profile: Profile
    path: Path
    content: dict[str, Any]
    values: dict[Keys, Any]


def read_profile(name_or_file: str, values: Sequence[str] = ()) -> ReadProfile:
    """As `load_profile`, with the sources of the values."""
    bundled = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"), key=lambda path: path.stem)}
    path = bundled.get(name_or_file, Path(name_or_file))
    if not name_or_file or not os.path.exists(path):
        raise UserError(
            f"no profile {name_or_file[:MAX_NAME_BYTES]!r}: known are {', '.join(bundled)}, or give the path of a "
            "YAML file"
        )
    content = whole = read_yaml(path)
    replaced = parse(values, Profile)
    for keys, value in replaced.items():
        whole = put(whole, keys, value)
    source = " ".join([str(path), *(f"--set {brief(text)}" for text in values)])
    if "folder" in whole:
        raise UserError(f"{source}: folder: is no field of a profile")
    profile = _validated({"name": path.stem, **whole, "folder": path.resolve().parent}, source)
    return ReadProfile(profile, path, content, replaced)


def _validated(content: dict[str, Any], source: str) -> Profile:
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        problems = problems_of(error, known=[name for name in names_of(Profile) if name != "folder"])
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise UserError(f"{source}: {'; '.join([*problems[:MAX_PROBLEMS], *more])}") from error
