"""The meanings of the field `model` of a request: a method, an adapter, or a composition that is written out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_retriever.backends import BACKENDS
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.methods import Method, methods_of
from lora_retriever.methods.base import LearnedGate
from lora_retriever.methods.paper import Own
from lora_retriever.retrieval.scorers import SCORERS
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.schemas import Wishes
from peft_composition import Composer, Gate


@dataclass(frozen=True)
class Asked:
    """How a request is to be answered.

    Attributes:
        name: the method's name, or `model` as it was written.
        gate: the method's gate, which some methods must learn first.
        method: gives the composition by the input. None: `composition` is given.
        settings: k, scorer and temperature that differ from the profile's.
        exclude: adapters that must not be used.
    """

    name: str
    mode: str | Composer
    gate: Gate | LearnedGate | None = None
    method: Method | None = None
    settings: tuple[tuple[str, str | int | float], ...] = ()
    exclude: frozenset[str] = frozenset()
    composition: Composition | None = None


def served_methods(profile: Profile) -> dict[str, Method]:
    """The methods that can answer a single input: registered methods, and a user's own methods in the profile.

    Not served are the out-of-domain variants and the oracle, which need to know the input's task.
    """
    own = [name for name in profile.methods if ":" in name]
    found = methods_of(profile, ["all", *own])
    return {
        method.name: method.seeded(profile.seed)
        for method in found
        if not method.masked and not isinstance(method.router, Own)
    }


def learns(method: Method) -> bool:
    """Whether a method looks into the model, or learns, before answering (`Learning`)."""
    return "model" in method.reads or isinstance(method.gate, LearnedGate)


def refusal(method: Method, profile: Profile) -> str | None:
    """Why the profile's backend cannot answer with a method. None: it can."""
    if BACKENDS[profile.backend].has_model or (method.gate is None and not learns(method)):
        return None
    needs = "weighs adapters by token" if method.gate is not None else "looks into the model"
    return (
        f"{method.name} {needs}, and backend: {profile.backend} serves checkpoints; name another method, or serve "
        "the profile with backend: local"
    )


def asked_of(
    model: str, wishes: Wishes | None, methods: Mapping[str, Method], adapters: Collection[str], profile: Profile
) -> Asked:
    """The method, the adapters and the settings for which a request asks.

    Raises:
        ApiError: there is no such model, or the wishes do not fit the model or the pool.
    """
    wishes = wishes or Wishes()
    for name in wishes.exclude:
        if name not in adapters:
            raise ApiError(400, f"`lora.exclude`: no adapter {quoted(name)}", "lora.exclude", "adapter_not_found")
    method = methods.get(model)
    if method is None:
        return _composition(model, wishes, adapters)
    if (reason := refusal(method, profile)) is not None:
        raise ApiError(400, f"`model`: {reason}", "model", "model_not_served")
    if wishes.adapters is not None:
        return _weighted(method, wishes, adapters)
    return Asked(
        model,
        method.mode,
        method.gate,
        method,
        _settings(method, wishes, profile),
        frozenset(wishes.exclude),
        Composition() if not method.reads else None,
    )


def _settings(method: Method, wishes: Wishes, profile: Profile) -> tuple[tuple[str, str | int | float], ...]:
    given = {"k": wishes.k, "scorer": wishes.scorer, "temperature": wishes.temperature}
    settings = {name: value for name, value in given.items() if value is not None}
    for name in settings:
        if learns(method) or not method.depends_on(name, profile.retrieval.k):
            raise ApiError(
                400, f"`lora.{name}`: the method {method.name} does not use it; leave it out", f"lora.{name}"
            )
    check_scorer(wishes.scorer, profile, "lora.scorer")
    return tuple(settings.items())


def check_scorer(scorer: str | None, profile: Profile, param: str) -> None:
    """Check that a client may name a scorer: one of the project's, or the profile's. No code is loaded for a client.

    Raises:
        ApiError: the client may not name this scorer, or the scorer reads embeddings and the profile has no encoder.
    """
    if scorer is None:
        return
    if scorer not in SCORERS and scorer != profile.retrieval.scorer:
        raise ApiError(400, f"`{param}`: unknown scorer {quoted(scorer)} (known: {', '.join(SCORERS)})", param)
    if profile.encoder is None and profile.find_scorer(scorer).needs_embeddings:
        raise ApiError(400, f"`{param}`: {scorer} reads embeddings, and this server has no encoder", param)


def _weighted(method: Method, wishes: Wishes, adapters: Collection[str]) -> Asked:
    """A client's own adapters with weights, in place of a method's hits, composed by the method's composer."""
    assert wishes.adapters is not None
    if not method.reads:
        raise ApiError(400, f"`lora.adapters`: {method.name} uses no adapters; name mixture or fusion", "lora.adapters")
    if learns(method):
        reason = f"`lora.adapters`: {method.name} learns which adapters it uses; name mixture or fusion"
        raise ApiError(400, reason, "lora.adapters")
    _check_alone(wishes, "lora.adapters")
    _check_known(wishes.adapters, adapters, "lora.adapters")
    return Asked(method.name, method.mode, method.gate, composition=_of(wishes.adapters, "lora.adapters"))


def _composition(model: str, wishes: Wishes, adapters: Collection[str]) -> Asked:
    """An adapter, or adapters with weights, `ADAPTER:WEIGHT+ADAPTER:WEIGHT`: a mixture."""
    if model in adapters:
        weights = {model: 1.0}
    else:
        weights = _written(model)
        _check_known(weights, adapters, "model", model)
    _check_alone(wishes, "model")
    if wishes.adapters is not None:
        raise ApiError(
            400, "`lora.adapters`: the model names adapters already; name a method as the model", "lora.adapters"
        )
    return Asked(model, "mixture", composition=_of(weights, "model"))


def _written(model: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in model.split("+"):
        name, colon, number = part.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not colon or not name or not math.isfinite(weight):
            raise _unknown(model)
        if name in weights:
            raise ApiError(400, f"`model`: {quoted(name)} is named twice", "model")
        weights[name] = weight
    return weights


def _check_known(weights: Mapping[str, float], adapters: Collection[str], param: str, model: str | None = None) -> None:
    for name in weights:
        if name not in adapters:
            if model is not None:
                raise _unknown(model)
            raise ApiError(400, f"`{param}`: no adapter {quoted(name)}", param, "adapter_not_found")


def _check_alone(wishes: Wishes, what: str) -> None:
    """Refuse wishes that have no effect where the adapters are given."""
    for name in ("k", "scorer", "temperature", "exclude"):
        if getattr(wishes, name):
            raise ApiError(400, f"`lora.{name}` has no effect where `{what}` names the adapters", f"lora.{name}")


def _of(weights: Mapping[str, float], param: str) -> Composition:
    composition = Composition.of(weights)
    if not composition.weights:
        raise ApiError(400, f"`{param}`: all weights are 0; name the model base", param)
    return composition


def _unknown(model: str) -> ApiError:
    return ApiError(
        404,
        f"the model {quoted(model)} does not exist: name a method, an adapter (GET /v1/models lists both), or adapters "
        "with weights, such as A:0.5+B:0.5",
        "model",
        "model_not_found",
    )


def with_settings(profile: Profile, settings: tuple[tuple[str, str | int | float], ...]) -> Profile:
    """The profile with a request's settings.

    Raises:
        ApiError: a value is wrong.
    """
    if not settings:
        return profile
    try:
        return profile.replaced(dict(settings), "lora")
    except UserError as error:
        raise ApiError(400, str(error), "lora") from error
