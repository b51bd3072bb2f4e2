"""Preparing texts for scoring: one Unicode form, one kind of line end, and words of every script."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Script = Literal["Han", "kana", "Hangul", "Thai, Lao, Khmer or Myanmar"]

_LINE_ENDS = str.maketrans(dict.fromkeys("\x85\u2028\u2029\r", "\n") | {"\ufeff": None})

_SCRIPTS: tuple[tuple[Script, tuple[str, ...]], ...] = (
    ("Han", ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC", "BOPOMOFO")),
    ("kana", ("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA")),
    ("Hangul", ("HANGUL", "HALFWIDTH HANGUL")),
    ("Thai, Lao, Khmer or Myanmar", ("THAI", "LAO", "KHMER", "MYANMAR")),
)
"""The scripts that matter here, and the beginnings of their letters' Unicode names."""

_WITHOUT_SPACES = ("Han", "kana", "Thai, Lao, Khmer or Myanmar")
_IGNORED = "\xad\u200b\u200c\u200d\u2060\ufe0e\ufe0f"
"""Characters without a glyph inside words: soft hyphen, zero-width space and joiners, variation selectors."""


def in_one_form(text: str) -> str:
    r"""The text in Unicode form NFC, with `\n` as its only line end and without byte order marks.

    A letter with an accent can be one character or two; a reader sees no difference. NFC makes the two equal and
    changes nothing that a reader sees. NFKC would change more: `x²` would equal `x2`, `½` would equal `1⁄2`, and
    full-width letters would equal ordinary letters, so answers that a reader distinguishes would score as equal.
    """
    if text.isascii() and "\r" not in text:
        return text
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").translate(_LINE_ENDS))


def words(text: str) -> list[str]:
    """The words of a text in lower case, for ROUGE. An ASCII text has the same words as in rouge-score.

    A word is a run of letters, digits and marks of any script. Scripts written without spaces (Han, kana, Thai, Lao,
    Khmer, Myanmar) give one word per character, with the marks on that character. A symbol such as an emoji is a word.
    Punctuation is dropped.
    """
    found: list[str] = []
    open_word = False  # whether a letter continues the last word
    marked = False  # whether a mark belongs to the last word
    for character in text.lower():
        kind = _kind(character)
        if kind == "ignored":
            continue
        if kind == "mark":
            if marked:
                found[-1] += character
            continue
        if kind == "letter" and open_word:
            found[-1] += character
        elif kind != "between":
            found.append(character)
        open_word, marked = kind == "letter", kind != "between"
    return found


def without_punctuation(text: str) -> str:
    """The text without the punctuation of all scripts, and without the ASCII symbols of `string.punctuation`."""
    return "".join(character for character in text if not _is_punctuation(character))


def split_characters(text: str) -> list[str]:
    """The words of a text between white space; scripts without spaces give one word per character.

    MLQA's evaluation (Lewis et al., 2020) segments Chinese in the same way.
    """
    spaced, after_alone = [], False
    for character in text:
        kind = _kind(character)
        if kind == "alone" or (after_alone and kind != "mark"):
            spaced.append(" ")
        spaced.append(character)
        after_alone = kind == "alone" or (after_alone and kind == "mark")
    return "".join(spaced).split()


def main_script(texts: Iterable[str]) -> Script | None:
    """The script of most letters of some texts, if a word tokenizer is unfit for that script; otherwise None.

    Texts of Han and kana are Japanese, `kana`, if one letter of ten or more is kana.
    """
    counts: Counter[Script | None] = Counter()
    for text in texts:
        if text.isascii():
            counts[None] += sum(map(str.isalpha, text))
        else:
            counts.update(_script(character) for character in text if character.isalpha())
    fitting = counts.pop(None, 0)
    if sum(counts.values()) <= fitting:
        return None
    if counts["kana"] * 10 >= counts["Han"] + counts["kana"] > 0:
        counts["kana"] += counts.pop("Han", 0)
    return counts.most_common(1)[0][0]


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> Literal["letter", "mark", "alone", "ignored", "between"]:
    """How a character takes part in words: in a word, on the letter before, a word alone, none, or between words."""
    if character in _IGNORED:
        return "ignored"
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category == "So" or (category[0] in "LN" and _script(character) in _WITHOUT_SPACES):
        return "alone"
    return "letter" if category[0] in "LN" else "between"


@lru_cache(maxsize=1 << 16)
def _is_punctuation(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "P" or (character.isascii() and category[0] == "S")


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> Script | None:
    name = unicodedata.name(character, "")
    return next((script for script, beginnings in _SCRIPTS if name.startswith(beginnings)), None)
