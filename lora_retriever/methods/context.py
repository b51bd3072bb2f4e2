"""`Context`: the parts of an evaluation that a method may read.

A method that reads an undeclared part is refused by name.
All methods of an evaluation share embeddings, indexes, the model and learned folders. `Resources` holds these objects,
and makes each object when a method first asks for the object. A `Context` is one method's view of the resources.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import hash_path, read_bytes, write_json
from lora_retriever.methods.code import learning_digest
from lora_retriever.own_objects import is_own, source_hash
from lora_retriever.retrieval.embedding_cache import cached
from lora_retriever.retrieval.encoders import Embeddings, Encoder, load_encoder
from lora_retriever.retrieval.encoding import encode_samples, encode_texts
from lora_retriever.retrieval.index import AdapterIndex, Hits
from lora_retriever.retrieval.own import find_encoder

if TYPE_CHECKING:
    from lora_retriever.generation.generator import Generator

LEARNED = "learned"
"""The folder, within the results folder, of all learned folders."""
RECORD_FILE = "record.json"
"""The file, within each learned folder, that says how its content was made.

A folder without this file is not finished.
"""

Reads = Literal["adapters", "pool", "encoder", "model"]
"""Parts of an experiment that may decide a method's answers, beside the base model."""
Settings = Literal["k", "scorer", "temperature", "seed"]
"""Settings of a profile that a method may use."""
Uses = Literal["rows", "encoder", "masked", "k", "scorer", "temperature"]
"""Things that may decide the content of a learned folder. `Context.learned` lists the things that always decide it."""


@dataclass(frozen=True)
class Declaration:
    """The declaration of a method: the parts of the experiment, and the settings, that may decide the method's answers.

    Attributes:
        name: the method's name.
        masked: whether each row's own adapter is masked (out-of-domain).
    """

    name: str
    masked: bool
    reads: frozenset[Reads]
    settings: frozenset[Settings]


class Resources:
    """The objects that all methods of one evaluation share.

    Each object is made when a method first asks for the object.
    Attributes:
        learned: the hashes of the learned folders that were used since this dictionary was last emptied, by name.
        kept_learned: the names of learned folders that are used though other code made them.
    """

    def __init__(
        self,
        profile: Profile,
        benchmark: Benchmark,
        results: Path,
        console: Console,
        load_generator: Callable[[], Generator],
    ) -> None:
        """`load_generator` gives the base model with the pool's adapters, or raises `UserError`."""
        self.profile = profile
        self.benchmark = benchmark
        self.results = results
        self.console = console
        self.learned: dict[str, str] = {}
        self.kept_learned: tuple[str, ...] = ()
        self._asked_of: Resources | None = None  # the resources whose index and encoder are used (`asking`)
        self._load_generator = load_generator
        self._indexes: dict[str, AdapterIndex] = {}

    def asking(self, rows: Sequence[Row]) -> Resources:
        """The resources for other rows than the benchmark's, such as the questions of a procedure.

        The index, the encoder and the model are shared. If a method learns for these rows, the result has a folder of
        its own.
        """
        content = json.dumps([[row.id, row.task, row.inputs] for row in rows])
        hashes = {**self.benchmark.hashes, "rows": hashlib.sha256(content.encode()).hexdigest()}
        benchmark = replace(self.benchmark, rows=list(rows), hashes=hashes)
        other = Resources(self.profile, benchmark, self.results, self.console, lambda: self.generator)
        other.kept_learned = self.kept_learned
        other._asked_of = self if self._asked_of is None else self._asked_of
        return other

    @cached_property
    def generator(self) -> Generator:
        """The base model with the pool's adapters, for methods that look into it."""
        return self._load_generator()

    @cached_property
    def embeddings(self) -> tuple[AdapterIndex, Embeddings]:
        """An index with the embeddings of the pool's samples, and the embeddings [rows, dim] of the rows' inputs.

        Raises:
            UserError: the profile has no encoder, or the encoder cannot be loaded or gives no embeddings.
        """
        if self._asked_of is not None:
            # One by one, because the last digits of embeddings depend on the texts that are encoded together, and after
            # a stop only the questions without an answer are asked.
            pool, encoder = self._asked_of.embeddings[0], self._asked_of.encoder
            return pool, np.concatenate([encode_texts(encoder, [row.inputs]) for row in self.benchmark.rows])
        names = [entry.model_name for entry in self.benchmark.pool]
        texts = [[sample.inputs for sample in entry.sample] for entry in self.benchmark.pool]
        with self.console.status("encoding the pool and the rows"):
            encoder = self.encoder
            try:
                queries = encode_texts(encoder, [row.inputs for row in self.benchmark.rows])
                samples = encode_samples(encoder, texts)
            except ValueError as error:
                raise UserError(f"profile {self.profile.name}: encoder: {error}") from error
            return AdapterIndex.from_embeddings(names, samples, texts=texts), queries

    def free_encoder(self) -> None:
        """Free the encoder's memory on a GPU. The encoder is loaded again when a text has to be encoded."""
        if self.profile.encoder_device == "cpu":
            return
        import torch

        self.__dict__.pop("encoder", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def index(self, scorer: str) -> AdapterIndex:
        """The pool's index under a scorer. Embeddings are made only if the scorer reads embeddings."""
        if self._asked_of is not None:
            return self._asked_of.index(scorer)
        if scorer not in self._indexes:
            rule = self.profile.find_scorer(scorer)
            self._indexes[scorer] = (
                self.embeddings[0].rescored(rule)
                if rule.needs_embeddings
                else AdapterIndex.from_texts(self.benchmark.pool, scorer=rule)
            )
        return self._indexes[scorer]

    @cached_property
    def encoder(self) -> Encoder:
        """The profile's encoder, behind the user's cache of embeddings. An encoder of a user's own is not cached."""
        return encoder_of(self.profile, self.benchmark.encoder, self.benchmark.hashes.get("encoder"))


def encoder_of(profile: Profile, folder: Path | None, hash: str | None) -> Encoder:
    """The encoder of a profile, behind the user's cache of embeddings. An encoder of a user's own is not cached.

    Args:
        folder: the encoder's folder. None: the encoder is a user's own.
        hash: the encoder's SHA-256.

    Raises:
        UserError: the profile has no encoder, or the encoder cannot be loaded.
    """
    settings = profile.encoder
    if settings is None:
        raise UserError(f"profile {profile.name}: encoder: the field is missing, and embeddings are needed")
    if settings.is_own:
        return find_encoder(settings.location, profile.folder)
    assert folder is not None and hash is not None, "an encoder that is no user's own has a folder"
    layout, instruction, device = settings.layout, settings.instruction, profile.encoder_device
    load = partial(load_encoder, folder, layout, instruction, settings.batch_size, device)
    return cached(load, hash, layout, instruction, device) if settings.cache else load()


class Context:
    """One method's view of an evaluation.

    A run's record keeps only what its method declares in `reads` and `settings`. If a method read anything else, a
    change there would go unnoticed, and old answers would count as answers of the changed run. So every property here
    checks the declaration.
    """

    def __init__(self, resources: Resources, profile: Profile, declared: Declaration) -> None:
        """`profile` has the swept values of the method's variant."""
        self._resources = resources
        self._profile = profile
        self._declared = declared
        self._learning: tuple[str, frozenset[str]] | None = None  # name and uses of the folder that is learned

    @property
    def rows(self) -> list[Row]:
        """The benchmark's rows. Routers read their inputs; the oracle reads their tasks."""
        self._check_use("rows")
        return self._resources.benchmark.rows

    @property
    def names(self) -> list[str]:
        """The names of the pool's adapters."""
        self._check_reads("adapters")
        return [entry.model_name for entry in self._resources.benchmark.pool]

    @property
    def pool(self) -> list[PoolEntry]:
        """The pool: the name, domain and samples of each adapter."""
        self._check_reads("pool")
        return self._resources.benchmark.pool

    @property
    def k(self) -> int:
        """How many adapters a row gets."""
        self._check_setting("k")
        return self._profile.retrieval.k

    @property
    def scorer(self) -> str:
        """The name of the scorer by which retrieval orders adapters."""
        self._check_setting("scorer")
        return self._profile.retrieval.scorer

    @property
    def temperature(self) -> float | None:
        """The temperature at which retrieval scores become weights. None: equal weights."""
        self._check_setting("temperature")
        return self._profile.retrieval.temperature

    @property
    def seed(self) -> int:
        """The seed of whatever a method draws."""
        self._check_setting("seed")
        return self._profile.seed

    @property
    def masked(self) -> bool:
        """Whether each row's own adapter is masked (out-of-domain)."""
        self._check_use("masked")
        return self._declared.masked

    @property
    def masked_adapters(self) -> list[str | None]:
        """For each row, the adapter that the row must not be given. None: the row may be given any adapter."""
        return [row.task if self.masked else None for row in self.rows]

    @property
    def available(self) -> int:
        """How many adapters each row can choose from."""
        self._check_reads("adapters")
        return len(self._resources.benchmark.pool) - self.masked

    @property
    def queries(self) -> Embeddings:
        """The embeddings [rows, dim] of the rows' inputs, float32."""
        self._check_reads("encoder")
        return self._resources.embeddings[1]

    def index(self, scorer: str | None = None) -> AdapterIndex:
        """The pool's index under a scorer. None: the profile's scorer."""
        self._check_reads("pool")
        named = self.scorer if scorer is None else scorer
        if self._profile.find_scorer(named).needs_embeddings:
            self._check_use("encoder")
            if scorer is not None:  # the profile's scorer itself says that the method reads embeddings
                self._check_reads("encoder")
        return self._resources.index(named)

    def search(self, k: int, scorer: str | None = None) -> Hits:
        """The best `k` adapters for each row, without the masked adapters."""
        exclude = self.masked_adapters if self.masked else None
        texts, index = [row.inputs for row in self.rows], self.index(scorer)
        queries = self._resources.embeddings[1] if index.needs_embeddings else None
        return index.search(queries, k, exclude=exclude, texts=texts)

    @property
    def generator(self) -> Generator:
        """The base model with the pool's adapters, its tokenizer, and the template.

        Raises:
            UserError: the profile's backend has no model to look into.
        """
        self._check_reads("model")
        return self._resources.generator

    @property
    def console(self) -> Console:
        """Where progress is shown."""
        return self._resources.console

    def learned(
        self,
        name: str,
        depends_on: Mapping[str, Any],
        learn: Callable[[Path], dict[str, Any]],
        *,
        seeded: bool = True,
        uses: Collection[Uses] = (),
    ) -> Path:
        """The learned folder of a method. If the folder is missing or not finished, the method learns now.

        The folder lies in the results folder. Its name depends on `depends_on` (options of the method), the seed, the
        base, the adapters, the pool, the template, the dtype, and the code that learns. So an interrupted run goes on
        with the same folder, and variants share a folder.

        Args:
            learn: gets a folder for its files, and returns the description of their making, for the record. After an
                interruption, `learn` gets the same folder, with its files so far.
            seeded: whether `learn` reads the seed. If False, all seeds share a folder.
            uses: the other parts of this context that `learn` reads. The folder's name depends on these parts, too.

        Raises:
            UserError: `learn` reads something that `uses` does not name. Later runs would use the folder even if this
                thing has changed.
        """
        benchmark, generation = self._resources.benchmark, self._profile.generation
        conditions: dict[str, Any] = {
            "name": name,
            "options": dict(depends_on),
            **({"seed": self.seed} if seeded else {}),
            **{str(use): self._value_of(use) for use in sorted(uses)},
            **{part: benchmark.hashes[part] for part in ("base", "adapters", "pool")},
            "template": generation.template_text,
            **({} if generation.system is None else {"system": generation.system}),
            "max_prompt_tokens": generation.max_prompt_tokens,
            "dtype": self._profile.dtype,
        }
        parent = self._resources.results / LEARNED
        kept = [parent / kept for kept in self._resources.kept_learned if _conditions_of(parent / kept) == conditions]
        conditions |= {"code": learning_digest(learn)}
        digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:12]
        folder = kept[0] if kept else parent / f"{name}-{digest}"
        record = folder / RECORD_FILE
        if not record.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._learning = name, frozenset([*uses, *(["seed"] if seeded else [])])
            try:
                made = learn(folder)
            finally:
                self._learning = None
            write_json(record, {"conditions": conditions, **made})
        self._resources.learned[folder.name] = hash_path(folder)
        return folder

    def _value_of(self, use: Uses) -> Any:
        """The part of a learned folder's name that stands for one thing on which the folder's content depends."""
        hashes, encoder = self._resources.benchmark.hashes, self._profile.encoder
        if use == "rows":
            reading = self._profile.data.reading
            return [hashes["rows"], self._resources.benchmark.limit, *([reading] if reading else [])]
        if use == "encoder":
            if "scorer" not in self._declared.settings:
                self._check_reads("encoder")
            return None if encoder is None else [hashes.get("encoder"), encoder.layout, encoder.instruction]
        if use == "scorer" and is_own(self.scorer):
            return [self.scorer, source_hash(self.scorer)]
        return getattr(self, use)

    def _check_use(self, use: str) -> None:
        if self._learning is not None and use not in self._learning[1]:
            name = self._learning[0]
            argument = "seeded=True" if use == "seed" else f"uses={{{use!r}}}"
            raise UserError(
                f"method {self._declared.name}: what it learns as {name!r} depends on {use!r} without saying so, so a "
                f"change of it would go unnoticed: pass {argument} to context.learned"
            )

    def _check_reads(self, part: Reads) -> None:
        if part == "encoder":
            self._check_use("encoder")
        if part not in self._declared.reads:
            raise self._undeclared(f"the {part}", "reads", part)

    def _check_setting(self, setting: Settings) -> None:
        self._check_use(setting)
        if setting not in self._declared.settings:
            raise self._undeclared(f"the setting {setting}", "settings", setting)

    def _undeclared(self, what: str, field: str, name: str) -> UserError:
        return UserError(
            f"method {self._declared.name} uses {what} without declaring it, so a change of it would go unnoticed: "
            f"add {name!r} to the method's `{field}`"
        )


def _conditions_of(folder: Path) -> dict[str, Any] | None:
    """The conditions, apart from the code, under which a learned folder was made.

    None: no record has the conditions.
    """
    try:
        conditions = json.loads(read_bytes(folder / RECORD_FILE))["conditions"]
        return {name: value for name, value in conditions.items() if name != "code"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
