"""The models and the pool that `lora-retriever lorahub` works with, named by arguments or by a profile."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from lora_retriever.data.rows import PoolEntry
    from lora_retriever.generation.loading import ModelSource
    from lora_retriever.generation.settings import GenerationSection
    from lora_retriever.retrieval.encoders import Encoder


@dataclass(frozen=True)
class Parts:
    """Models and pool.

    Attributes:
        base_name: the name or location of the base model, as a user gave it.
        base: the folder of the base model.
        locations: the folder or Hub id of each adapter, by the adapter's name.
        settings: how prompts are made and answered.
        dtype: the name of torch's dtype.
        device: a device of torch.
        pool: the samples of the adapters. None: there is no pool.
        encoder: loads the encoder. None: there is no encoder.
        hashes: SHA-256 of `encoder` and `pool`; None where there is none.
        adapter_memory: maximum memory of adapters on a device, in bytes. None: no limit.
        threads: torch's threads on a CPU. None: as many as there are cores.
    """

    base_name: str
    base: Path
    locations: Mapping[str, str | Path]
    settings: GenerationSection
    dtype: str
    device: str
    pool: list[PoolEntry] | None
    encoder: Callable[[], Encoder] | None
    hashes: Mapping[str, str | None]
    adapter_memory: int | None = None
    threads: int | None = None

    def source(self, names: Iterable[str]) -> ModelSource:
        """The base with the adapters `names`, ready to be loaded.

        Raises:
            UserError: an adapter cannot be found.
        """
        from lora_retriever.generation.loading import ModelSource
        from lora_retriever.hub import folder_or_id

        adapters = {name: folder_or_id(str(self.locations[name])) for name in names}
        return ModelSource(
            self.base, adapters, self.settings, self.dtype, self.device, self.adapter_memory, self.threads
        )

    def retrieval(self) -> tuple[Encoder, list[PoolEntry]]:
        """The encoder and the pool. Called only if adapters are retrieved.

        Raises:
            UserError: the encoder cannot be loaded.
        """
        assert self.encoder is not None and self.pool is not None, "checked by `parts_of`"
        return self.encoder(), self.pool


def parts_of(args: argparse.Namespace, console: Console) -> Parts:
    """The parts that the arguments, or the profile of the arguments, name.

    Raises:
        UserError: something is missing or cannot be used.
    """
    retrieves = args.choice == "retrieved" or bool(args.tasks and "mixture" in args.baselines)
    if args.profile is not None:
        return _of_profile(args, retrieves, console)
    if retrieves and not (args.encoder and args.pool):
        raise UserError("what is retrieved needs --encoder and --pool")
    return _of_arguments(args, console)


def _of_profile(args: argparse.Namespace, retrieves: bool, console: Console) -> Parts:
    from lora_retriever.commands.arguments import profile_of
    from lora_retriever.data.drawing import hash_entries
    from lora_retriever.data.rows import read_rows
    from lora_retriever.escaping import for_rich
    from lora_retriever.experiment.benchmark import find_encoder_of, folder_of, folders_of_adapters, pool_of
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.methods.context import encoder_of

    profile = profile_of(args)
    notes: list[str] = []
    rows = [] if isinstance(profile.data.pool, str) else read_rows(profile.rows_source)  # a drawn pool lacks these
    pool = pool_of(profile, rows, notes)
    for note in notes:
        console.print(for_rich(f"warning: {note}"), soft_wrap=True)
    if retrieves and profile.encoder is None:
        raise UserError(f"profile {profile.name}: encoder: the field is missing, and adapters are retrieved")
    folder, found = find_encoder_of(profile) if retrieves else (None, {})
    hashes = {"encoder": found.get("encoder"), "pool": hash_entries(pool)}
    return Parts(
        profile.base.location,
        folder_of(profile, profile.base.location, profile.base.revision, files_wanted(profile.generation.template)),
        dict(sorted(folders_of_adapters(profile, pool).items())),  # in the order in which `--adapters` finds folders
        profile.generation,
        profile.dtype,
        profile.torch_device,
        pool,
        partial(encoder_of, profile, folder, hashes["encoder"]) if retrieves else None,
        hashes,
        profile.adapters.memory,
        profile.threads,
    )


def _of_arguments(args: argparse.Namespace, console: Console) -> Parts:
    from lora_retriever.commands.shared import device_of
    from lora_retriever.data.rows import read_pool
    from lora_retriever.files import hash_path
    from lora_retriever.generation.prompt import check_system, check_template, files_wanted
    from lora_retriever.generation.settings import GenerationSection
    from lora_retriever.hub import ENCODER_WANTED, folder_or_id
    from lora_retriever.retrieval.encoders import load_encoder

    try:
        check_system(args.system, check_template(args.template))
    except ValueError as error:
        raise UserError(str(error)) from error
    locations = _locations(args, console)
    pool = read_pool(args.pool) if args.pool else None
    if pool is not None:  # the pool's names are names of folders
        of_folder = {entry.model_name: entry for entry in pool}
        known = [(name, of_folder.get(Path(location).name)) for name, location in locations.items()]
        pool = [entry.model_copy(update={"model_name": name}) for name, entry in known if entry is not None]
    encoder = folder_or_id(args.encoder, ENCODER_WANTED) if args.encoder else None
    return Parts(
        args.base,
        folder_or_id(args.base, files_wanted(args.template)),
        locations,
        GenerationSection(
            template=args.template,
            system=args.system,
            batch_size=args.batch_size,
            max_prompt_tokens=args.max_prompt_tokens,
            max_new_tokens=args.max_new_tokens,
        ),
        args.dtype,
        device_of(args.device),
        pool,
        partial(load_encoder, encoder) if encoder else None,
        {
            "encoder": hash_path(encoder) if encoder else None,
            "pool": hash_path(args.pool) if args.pool else None,
        },
    )


def _locations(args: argparse.Namespace, console: Console) -> dict[str, str]:
    """The locations of the adapters by name; says which folders of --adapters are passed over.

    A single task names its adapters by their locations, and an experiment names its adapters by their folders, since
    the names of tasks are names of folders.
    """
    from lora_retriever.escaping import for_rich
    from lora_retriever.methods.parts.lorahub_weights import ADAPTER_CONFIG, adapter_folders

    locations, passed_over = adapter_folders(args.adapter, args.adapters)
    if passed_over:
        passed = ", ".join(path.name for path in passed_over)
        console.print(for_rich(f"--adapters {args.adapters}: passed over, no {ADAPTER_CONFIG}: {passed}"))
    named = {Path(location).name if args.tasks else location: location for location in locations}
    if len(named) < len(locations):
        raise UserError("--tasks: two adapters have folders of one name; rename one of the folders")
    return named
