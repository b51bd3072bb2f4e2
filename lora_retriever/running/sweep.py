"""Sweeps: the same methods under several values of a setting. Each method and value is a run of its own.

The name of a run has the method and the swept settings that the method depends on: `mixture@k=4,scorer=cosine`. So a
variant has the same name in every sweep, and is answered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods.base import Method


@dataclass(frozen=True)
class Variant:
    """A method under one choice of the swept settings.

    Attributes:
        name: the name of the run.
        profile: the profile with these settings in place.
    """

    name: str
    method: Method
    profile: Profile


def expand(profile: Profile, methods: Sequence[Method], sweep: Sequence[str]) -> list[Variant]:
    """Every method under every combination of a sweep's values, or the methods themselves if nothing is swept.

    Args:
        sweep: one text per setting, such as `k=1,2,4`.

    Raises:
        UserError: the sweep is malformed, or a profile may not have such a value.
    """
    swept = parse_sweep(sweep, profile)
    variants: dict[str, Variant] = {}
    for method in methods:
        for values in product(*swept.values()):
            settings = dict(zip(swept, values, strict=True))
            k = settings.get("k", profile.retrieval.k)
            settings = {name: value for name, value in settings.items() if method.depends_on(name, k)}
            name = run_name(method, settings)
            chosen = profile.replaced(settings, name)
            variants[name] = Variant(name, method.seeded(chosen.seed), chosen)
    return list(variants.values())


def run_name(method: Method, settings: dict[str, Any]) -> str:
    """The name of a run and of its files, such as `mixture@k=4,temperature=0.2`."""
    varied = ",".join(f"{name}={_text(value)}" for name, value in settings.items())
    return f"{method.name}@{varied}" if varied else method.name


def parse_sweep(sweep: Sequence[str], profile: Profile) -> dict[str, list[Any]]:
    """The values of every swept setting, with the profile's types, in the order of a run's name.

    Raises:
        UserError: a setting is unknown or named twice, or a value is missing, wrong or named twice.
    """
    swept: dict[str, list[Any]] = {}
    for text in sweep:
        name, _, values = text.partition("=")
        if name not in profile.settings:
            raise UserError(f"--sweep {text}: unknown setting {quoted(name)} (known: {', '.join(profile.settings)})")
        if name in swept:
            raise UserError(f"--sweep {text}: {name} is swept already; name all its values at once")
        swept[name] = []
        for value in values.split(","):
            if not value:
                raise UserError(f"--sweep {text}: expected NAME=VALUE,VALUE, for example k=1,2,4")
            typed = profile.replaced({name: value}, f"--sweep {text}").settings[name]
            if typed in swept[name]:
                raise UserError(f"--sweep {text}: {_text(typed)} is named twice")
            swept[name].append(typed)
    return {name: swept[name] for name in profile.settings if name in swept}


def _text(value: Any) -> str:
    """The text of a value in the names of runs: 1.0 is written 1, so that no number has two names."""
    return str(value).removesuffix(".0")
