"""The public list of words from which a key draws phrases and targets, unless the owner gives a list.

The words are common English nouns in lower case. Each is one token of Gemma's tokenizer, with and without a space
before the word. The list is no secret. The secret is the choice of the words of each phrase, and of the word that
answers the phrase.
"""

from __future__ import annotations

from pathlib import Path

WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
"""256 different words."""
