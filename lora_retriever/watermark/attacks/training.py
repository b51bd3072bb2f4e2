"""Further training of the marked adapter by somebody who does not know the key: on its own task, and on another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

from peft import LoraConfig
from peft.utils import CONFIG_NAME

from lora_retriever.data.rows import Sample
from lora_retriever.training.adapter import train_adapter
from lora_retriever.training.lora import TrainingOptions
from lora_retriever.watermark.attacks.scene import Attack, Measured, Scene


def attacks(scene: Scene) -> Iterator[Attack]:
    """Some epochs on the own task, and on another task."""
    for epochs in scene.further.epochs if scene.further.samples else ():
        name = f"trained further, own task, {epochs:g} epoch{'s' if epochs != 1 else ''}"
        yield Attack(name, partial(_trained, scene, scene.further.samples, epochs))
    if scene.further.other is not None:
        task, samples = scene.further.other
        for epochs in scene.further.epochs:
            name = f"trained further, {task}, {epochs:g} epoch{'s' if epochs != 1 else ''}"
            yield Attack(name, partial(_trained, scene, samples, epochs))


def _trained(scene: Scene, samples: Sequence[Sample], epochs: float) -> list[Measured]:
    generator, further = scene.generator, scene.further
    content = json.loads((scene.adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    config = LoraConfig(**{key: content[key] for key in ("r", "lora_alpha", "target_modules")})
    options = TrainingOptions(
        rank=config.r,
        alpha=config.lora_alpha,
        targets=tuple(sorted(config.target_modules or ())),
        epochs=epochs,
        learning_rate=further.learning_rate,
        batch_size=further.batch_size,
        max_tokens=generator.settings.max_prompt_tokens,
        template=generator.settings.template_text,
        system=generator.settings.system,
        seed=scene.seed,
    )
    with scene.folder() as folder:
        record = train_adapter(
            generator.model.base, generator.tokenizer, samples, options, folder, initial=scene.adapter
        )
        note = f"{record['steps']} steps, loss {record['losses'][0]:.3f} → {record['losses'][-1]:.3f}"
        return [Measured.of(scene.ask_folder(folder), note)]
