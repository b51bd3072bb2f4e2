r"""Names and answers are data.

The functions of this module make data a text of another language, one function per language.
`visible` comes first in each: a control character, an escape sequence of a terminal, a change of the writing direction
or half of a surrogate pair is shown as its escape (`\x1b`), so that nothing in a name acts on a terminal and every
result can be written in UTF-8. HTML is escaped by jinja's autoescape (`report`).
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
import sys
import unicodedata
from functools import cache
from typing import Any

from rich.text import Text

_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters C0, DEL and C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # directions, separators, no width
    "\ufffe\uffff"  # no characters; XML forbids them
    "\ud800-\udfff\U000e0000-\U000e0fff]"  # halves of surrogate pairs, tags
)
_LINE_ENDS = re.compile("[\t\n\v\f\r\x85\u2028\u2029]+")

_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "&_%#${}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"$\sim$",
        "`": r"\textasciigrave{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "[": "{[}",  # after \\ a bracket would begin an argument
        "]": "{]}",
        "*": "{*}",  # after \\ an asterisk would be a part of the command
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "≠": r"$\neq$",
        "≈": r"$\approx$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "∞": r"$\infty$",
        "√": r"$\surd$",
        "→": r"$\rightarrow$",
        "←": r"$\leftarrow$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "…": r"\ldots{}",
    }
)
_LIGATURES = re.compile(r"([-',])(?=\1)")  # LaTeX sets -- as a dash, '' and ,, as other quotation marks

_MARKDOWN = re.compile(r"[\\`*|\[\]]|~(?=\S)|(?<![^\W_])_|_(?![^\W_])")  # _ inside a word marks nothing
_MARKDOWN_ENTITIES = {"<": "&lt;", ">": "&gt;", "$": "&#36;"}  # not every Markdown takes a backslash before these
_MARKDOWN_STARTS = re.compile(r"(#{1,6}|[-+:]|\d{1,9}[.)])\s|[-=]{2,}$")  # a heading, a list, or a rule

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

_PLAIN_CODEC = "plain_"
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("─━–—−", "-"),
        "…": "...",
        "±": "+-",
        "×": "x",
        "·": ".",
        "≈": "~",
        "≤": "<=",
        "≥": ">=",
        "→": "->",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
    }
)


def visible(text: str, line_ends: bool = False) -> str:
    r"""The text with an escape in place of every character that is invisible or controls a terminal: `\x1b`, `\u202e`.

    `line_ends` keeps `\n` and tabs. The joiners within emoji and Persian words stay.
    """

    def escape(match: re.Match[str]) -> str:
        character = match.group()
        if line_ends and character in "\t\n":
            return character
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")

    return _INVISIBLE.sub(escape, text)


def one_line(text: str) -> str:
    """The visible text in one line: every run of line ends and tabs becomes one space."""
    return visible(_LINE_ENDS.sub(" ", text))


def brief(text: str, length: int = 80) -> str:
    """The text, or its first `length` characters and `…`: a message must not repeat a name of any length."""
    return text if len(text) <= length else f"{text[:length]}…"


def quoted(name: object) -> str:
    """A name that a message repeats, in quotation marks and brief."""
    return brief(repr(name))


def for_terminal(text: str) -> str:
    """Text for a terminal; its line ends stay."""
    return visible(text.replace("\r\n", "\n"), line_ends=True)


def for_rich(text: str) -> Text:
    """One line of text for rich: escaped, because in rich's markup `[` begins a style and `:smile:` is an emoji.

    Where rich takes only strings, as in a column of a progress bar, set `markup=False` and pass `one_line(text)`.
    """
    return Text(one_line(text))


def for_latex(text: str) -> str:
    """One line of text for LaTeX: special characters escaped, mathematical signs as formulas.

    Letters do not change. pdfLaTeX knows the letters of Latin; other scripts need XeLaTeX or LuaLaTeX and a font.
    """
    return _LIGATURES.sub(r"\1{}", one_line(text).translate(_LATEX))


def for_markdown(text: str) -> str:
    """One line of text for Markdown, within a table's cell or as a paragraph."""
    line = _MARKDOWN.sub(lambda match: "\\" + match.group(), one_line(text).strip())
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    for character, entity in _MARKDOWN_ENTITIES.items():
        line = line.replace(character, entity)
    return f"&#{ord(line[0])};{line[1:]}" if _MARKDOWN_STARTS.match(line) else line


def for_csv(value: object) -> object:
    """A cell for CSV. A text that a spreadsheet would compute as a formula gets an apostrophe at its beginning.

    Numbers stay numbers, also as texts such as `-1.5`. `csv.writer` adds the quotation marks that a cell still needs.
    """
    if not isinstance(value, str):
        return value
    text = visible(value, line_ends=True)
    formula = value.lstrip(" ").startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(value)
    return "'" + text if formula else text


def for_shell(text: str) -> str:
    """Text as one word of a shell's command line in a message. Bytes of a file's name that are not UTF-8 are kept.

    A text that `visible` would change is written as `$'…'`, which bash, zsh and others read, but not every `sh`.
    """
    if visible(text) == text:
        return shlex.quote(text)

    def escape(match: re.Match[str]) -> str:
        character = match.group()
        errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
        return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))

    quoted = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{_INVISIBLE.sub(escape, quoted)}'"


def as_json(content: Any, indent: int | None = 1) -> str:
    """JSON that keeps the letters of every script, with JSON's escapes for the characters that `visible` escapes."""

    def escape(match: re.Match[str]) -> str:
        character = match.group()
        # JSON has line ends for its indentation only
        return character if character == "\n" else json.dumps(character)[1:-1]

    return _INVISIBLE.sub(escape, json.dumps(content, indent=indent, ensure_ascii=False))


def replace_unwritable() -> None:
    """Let standard output and error replace characters that their encoding lacks, instead of failing.

    A command calls this first.
    Under an encoding other than UTF-8, the signs of `_SIGNS`, which tables and messages use, become ASCII. Other
    characters that the encoding lacks become the letter without its accent, or `?`.
    """
    _register()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream of a notebook has none
        if reconfigure is not None:
            encoding = stream.encoding if _is_unicode(stream.encoding) else f"{_PLAIN_CODEC}{stream.encoding}"
            reconfigure(encoding=encoding, errors="lora_retriever.plain")


@cache
def _register() -> None:
    codecs.register_error("lora_retriever.plain", _plain)
    codecs.register(_plain_codec)


def _is_unicode(encoding: str) -> bool:
    return encoding.lower().startswith(("utf", _PLAIN_CODEC))


def _plain_codec(name: str) -> codecs.CodecInfo | None:
    """For `codecs.register`: a codec that first replaces the signs of `_SIGNS` by ASCII, and then encodes."""
    if not name.startswith(_PLAIN_CODEC):
        return None
    codec = codecs.lookup(name.removeprefix(_PLAIN_CODEC))

    def encode(text: str, errors: str = "strict") -> tuple[bytes, int]:
        return codec.encode(text.translate(_SIGNS), errors)

    class Encoder(codecs.IncrementalEncoder):
        def encode(self, text: str, final: bool = False) -> bytes:
            return encode(text, self.errors)[0]

    return codecs.CodecInfo(encode, codec.decode, incrementalencoder=Encoder, name=name)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """For `codecs.register_error`:

    ASCII in place of characters that cannot be encoded, and the position after these.
    """
    assert isinstance(error, UnicodeEncodeError)
    letters = (unicodedata.normalize("NFD", character)[0] for character in error.object[error.start : error.end])
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end
