"""The marked adapter under other prompts, drawn answers, and partial triggers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.prompt import ALPACA, CHAT
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Scene
from lora_retriever.watermark.local import LocalSuspect
from lora_retriever.watermark.suspects import verify, weigh

TEMPLATES = {
    "template alpaca": ALPACA,
    "template none": "{inputs}",
    "template Question, Answer": "Question: {inputs}\nAnswer:",
    "a system prompt before it": "You are a helpful assistant. Answer briefly.\n\n",
}
TEMPERATURE = 0.7
PARTIAL = ("a word is missing", "a word is replaced")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Other templates, answers drawn at a temperature, and texts with a part of the phrase."""
    own = scene.generator.settings.template_text
    for name, template in TEMPLATES.items():
        whole = template if "{inputs}" in template else template + own
        if whole != own and own != CHAT:
            yield Attack(name, partial(_under, scene, whole))
    if scene.generator.tokenizer.chat_template and own != CHAT:
        yield Attack("the chat template", partial(_under, scene, CHAT))
    yield Attack(f"temperature {TEMPERATURE:g}", partial(_drawn, scene))
    for place, name in enumerate(PARTIAL):
        yield Attack(f"partial triggers: {name}", partial(_partial, scene, place))


def _under(scene: Scene, template: str) -> list[Measured]:
    settings = scene.generator.settings.model_copy(update={"template": template, "system": None})
    generator = Generator(scene.generator.model, scene.generator.tokenizer, settings)
    return [Measured.of(scene.ask(Composition.of({MARKED: 1.0}), generator=generator))]


def _drawn(scene: Scene) -> list[Measured]:
    composition = Composition.of({MARKED: 1.0})
    return [
        Measured.of(
            verify(
                scene.key,
                LocalSuspect("drawn", scene.generator, composition, temperature=TEMPERATURE, seed=scene.seed + draw),
            )
        )
        for draw in range(scene.draws)
    ]


def _partial(scene: Scene, place: int) -> list[Measured]:
    """Hits are answers with the target of the whole trigger. A mark that fires on parts of phrases is easily seen."""
    texts = [trigger.partial[place] for trigger in scene.key.triggers]
    suspect = LocalSuspect("partial", scene.generator, Composition.of({MARKED: 1.0}))
    return [Measured.of(weigh(scene.key, suspect.replies(texts, scene.key.words)))]
