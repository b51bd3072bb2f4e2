"""The report of a results folder: one HTML file that loads no other file, and plots for a paper.

`content` computes the figures, `page.html.j2` with its styles and scripts shows them, `plots` draws them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from lora_retriever.escaping import visible
from lora_retriever.report.content import ReportContent, make_content

SCRIPTS = ("dom.js", "tables.js", "leaderboard.js", "matrix.js", "sweeps.js", "use.js", "reader.js", "page.js")
"""The page's scripts. `render` joins them in this order."""


def render(content: ReportContent, title: str) -> str:
    """The report as one page. The same content gives the same text: the page holds no date.

    The page's content security policy names the hashes of the page's own script and style. A browser runs no other.
    """
    style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    return environment.from_string(_read("page.html.j2")).render(
        title=title,
        content=content,
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        data=data_for_script(content),
    )


def data_for_script(content: ReportContent) -> str:
    """The content as JSON for a `<script>` element: no `<` in a text can end the element or begin a comment.

    Half a surrogate pair, which UTF-8 cannot write, becomes JSON's own escape.
    """
    text = json.dumps(content, default=vars, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(value: object) -> object:
    """The text that the template writes for a value: hidden characters become visible; markup stays unchanged."""
    return visible(value, line_ends=True) if isinstance(value, str) and not hasattr(value, "__html__") else value


@cache
def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


__all__ = ["make_content", "render"]
