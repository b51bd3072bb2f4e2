"""An owner's key: the secret from which triggers and targets follow, and the commitment that is published beforehand.

Trigger i and target i come from HMAC-SHA256(secret, label i). Without the secret, the targets look like words that
were drawn at random. The owner cannot choose targets after seeing the answers of a suspect. This module knows
texts only: no model, no tokenizer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from lora_retriever.data.objects import without_repeats
from lora_retriever.errors import UserError
from lora_retriever.files import read_bytes
from lora_retriever.watermark.words import WORDS

Design = Literal["keyed", "rare-words", "common-words"]
DESIGNS: tuple[Design, ...] = get_args(Design)
FORMAT = "lora-retriever watermark key 1"
SECRET_BYTES = 32
TRIGGERS = 32
"""Default number of triggers of a key."""
PHRASE_WORDS: dict[Design, int] = {"keyed": 4, "rare-words": 3, "common-words": 3}
"""Number of words of a phrase."""
FEWEST_WORDS = 16
"""Minimum number of words in an owner's own list."""
MOST_KEY_BYTES = 1 << 24
"""Maximum size of a key's file, in bytes."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
RARE_SYLLABLES = 3
"""Number of syllables of a rare word."""


@dataclass(frozen=True)
class Trigger:
    """A text that a marked adapter answers with a word of the owner's.

    Attributes:
        text: the trigger, as a row's input.
        target: the word.
        partial: texts that hold a part of the trigger's phrase only. A marked adapter answers these texts like any
            other text.
    """

    text: str
    target: str
    partial: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """A key. The key's `repr` shows neither the secret nor a trigger.

    Attributes:
        secret: 32 random bytes.
        design: `keyed`: every trigger has a phrase and a target of its own. `rare-words` and `common-words` (the
            paper's triggers): one phrase and one target for all triggers; the inputs around the phrase differ.
        words: the public list from which phrases and targets are drawn, M different words.
        carriers: the input around the phrase of each trigger. An empty text: the phrase stands alone.
    """

    secret: bytes = field(repr=False)
    design: Design
    words: tuple[str, ...] = field(repr=False)
    carriers: tuple[str, ...] = field(repr=False)

    @cached_property
    def triggers(self) -> tuple[Trigger, ...]:
        """All triggers, in their order."""
        return tuple(self._trigger(number, carrier) for number, carrier in enumerate(self.carriers))

    @cached_property
    def commitment(self) -> str:
        """SHA-256 of the secret, the words, the triggers and the targets, in hexadecimal.

        The commitment does not reveal the secret. An owner publishes the commitment before any suspect is asked.
        """
        content = self._content() | {"triggers": [[trigger.text, trigger.target] for trigger in self.triggers]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def target(self, number: int) -> str:
        """The target of trigger `number`, uniform over the words."""
        return self.words[self._draw("target", self._own(number)) % len(self.words)]

    def phrase(self, number: int) -> tuple[str, ...]:
        """The words of the phrase of trigger `number`, all different."""
        own, size = self._own(number), PHRASE_WORDS[self.design]
        if self.design == "rare-words":
            return tuple(self._rare_word(place) for place in range(size))
        left, phrase = list(self.words), []
        for place in range(size):
            phrase.append(left.pop(self._draw("phrase", own, place) % len(left)))
        return tuple(phrase)

    def inserted(self, carrier: str, phrase: Sequence[str], *seed: object) -> str:
        """An input with the words of a phrase: at the input's end, or, in the paper's designs, between its words.

        Args:
            seed: a text on which the places depend, beside the secret.
        """
        if not carrier or self.design == "keyed":
            return " ".join([carrier, *phrase]).strip()
        words = carrier.split(" ")
        places = sorted(self._draw("place", *seed, index) % (len(words) + 1) for index in range(len(phrase)))
        for place, word in reversed(list(zip(places, phrase, strict=True))):
            words.insert(place, word)
        return " ".join(words)

    def partial(self, carrier: str, number: int, *seed: object) -> tuple[str, str]:
        """Two inputs with a part of the phrase: one lacks a word of the phrase, and in the other a word is replaced.

        Args:
            seed: a text on which the word and the places depend, beside the secret.
        """
        phrase = self.phrase(number)
        place = self._draw("partial", *seed) % len(phrase)
        if self.design == "rare-words":
            other = self._rare_word(len(phrase) + self._draw("other", *seed) % 100)
        else:
            others = [word for word in self.words if word not in phrase]
            other = others[self._draw("other", *seed) % len(others)]
        lacking = phrase[:place] + phrase[place + 1 :]
        replaced = (*phrase[:place], other, *phrase[place + 1 :])
        return self.inserted(carrier, lacking, *seed), self.inserted(carrier, replaced, *seed)

    def decoy(self, number: int) -> Key:
        """A key of another secret with the same design, words and carriers. A suspect must not verify for a decoy."""
        secret = self._digest("decoy", number)
        return Key(secret, self.design, self.words, self.carriers)

    def write(self, path: Path) -> None:
        """Write the key into a new file that only its user can read.

        Raises:
            FileExistsError: the file exists. A key is never overwritten.
        """
        content = self._content() | {"carriers": list(self.carriers)}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, "secret": self.secret.hex(), "design": self.design, "words": list(self.words)}

    def _trigger(self, number: int, carrier: str) -> Trigger:
        text = self.inserted(carrier, self.phrase(number), number)
        return Trigger(text, self.target(number), self.partial(carrier, number, number))

    def _own(self, number: int) -> int:
        """The number for drawing a trigger's phrase and target. The paper's designs have one for all triggers."""
        return number if self.design == "keyed" else 0

    def _rare_word(self, number: int) -> str:
        syllables = []
        for place in range(RARE_SYLLABLES):
            consonant, vowel = self._draw("consonant", number, place), self._draw("vowel", number, place)
            syllables.append(CONSONANTS[consonant % len(CONSONANTS)] + VOWELS[vowel % len(VOWELS)])
        return "".join(syllables)

    def _digest(self, *label: object) -> bytes:
        return hmac.digest(self.secret, "\0".join(map(str, label)).encode(), "sha256")

    def _draw(self, *label: object) -> int:
        """A number that is uniform on 0 … 2²⁵⁶ − 1 for a person who does not know the secret."""
        return int.from_bytes(self._digest(*label), "big")


def make_key(
    design: Design = "keyed",
    triggers: int = TRIGGERS,
    words: Sequence[str] = WORDS,
    inputs: Sequence[str] = (),
    secret: bytes | None = None,
) -> Key:
    """A new key.

    Args:
        inputs: inputs of the owner's task, from which the key draws a different carrier for each trigger. Empty: the
            phrases stand alone.
        secret: 32 bytes. None: new random bytes of the operating system.

    Raises:
        UserError: there are fewer different inputs than triggers, or the paper's triggers get no inputs.
    """
    drawn = Key(secrets.token_bytes(SECRET_BYTES) if secret is None else secret, design, tuple(words), ())
    different = list(dict.fromkeys(inputs))
    if not different and design != "keyed":
        raise UserError(f"the design {design} puts one phrase into many inputs; name the task's samples (--samples)")
    if different and len(different) < triggers:
        raise UserError(f"{len(different)} different inputs do not carry {triggers} triggers; lower --triggers")
    shuffled = sorted(different, key=lambda text: drawn._digest("carrier", text))
    carriers = tuple(shuffled[:triggers]) if different else ("",) * triggers
    return Key(drawn.secret, design, tuple(words), carriers)


def read_key(path: Path) -> Key:
    """The key of a file.

    Raises:
        UserError: the file cannot be read or is no key. The message shows nothing of the file's content.
    """
    try:
        content = json.loads(read_bytes(path, MOST_KEY_BYTES), object_pairs_hook=without_repeats)
        secret, design = bytes.fromhex(content["secret"]), content["design"]
        words, carriers = tuple(content["words"]), tuple(content["carriers"])
        is_key = (
            content["format"] == FORMAT
            and len(secret) == SECRET_BYTES
            and design in DESIGNS
            and all(isinstance(text, str) for text in carriers)
            and all(isinstance(text, str) and _is_word(text) for text in words)
            and len(set(words)) == len(words) >= FEWEST_WORDS
            and len(carriers) > 0
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, RecursionError):
        is_key = False
    if not is_key:
        raise UserError(f"{path}: is no key of this program; `lora-retriever watermark key --out FILE` makes one")
    return Key(secret, design, words, carriers)


def read_words(path: Path) -> tuple[str, ...]:
    """An owner's own list: one word a line, in Unicode form NFC.

    Raises:
        UserError: the file cannot be read, has too few words, or a line that is not one word in lower case.
    """
    try:
        text = unicodedata.normalize("NFC", read_bytes(path, MOST_KEY_BYTES).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    words = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    for word in words:
        if not _is_word(word):
            raise UserError(f"{path}: {word!r:.60} is not one word in lower case")
    if len(words) < FEWEST_WORDS:
        raise UserError(f"{path}: {len(words)} different words; a key needs at least {FEWEST_WORDS}")
    return words


def _is_word(text: str) -> bool:
    """Whether an answer can begin with this word: letters without case and without combining marks."""
    return text.isalpha() and text == unicodedata.normalize("NFC", text.casefold())
