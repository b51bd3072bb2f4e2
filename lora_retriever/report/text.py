"""Texts of users as the report shows them: every character that is not plain text becomes a visible escape.

Control characters, half surrogate pairs and marks that reverse the direction of what follows would break an SVG file,
hide a part of a name, or reorder the page around it. `dom.js` does the same for what the page's script shows.
"""

from __future__ import annotations

import re

LONGEST_LABEL = 60  # Maximum length of a plot's label, in characters.

# Control characters but tab and line feed, half surrogate pairs, line and paragraph separators, marks that override or
# isolate the direction of writing, the byte order mark, and the two code points that XML forbids.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


def visible(text: str) -> str:
    r"""The text with each hidden character as its escape, such as `\u202e`; tab and line feed stay."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def label(text: str) -> str:
    """The text as one short line, for the label of a plot."""
    line = visible(text).replace("\n", "⏎").replace("\t", " ")
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"
