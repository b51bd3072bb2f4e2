"""The report of a results folder: one HTML file that needs nothing else, and the plots of a paper.

`content` computes what is shown, `page.html.j2` with its styles and scripts shows it, `plots` draws it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from lora_retriever.report.content import Content, make_content

SCRIPTS = ("dom.js", "tables.js", "matrix.js", "sweeps.js", "use.js", "reader.js", "page.js")
"""The page's scripts; they are joined, in this order, into one."""


def render(content: Content, title: str) -> str:
    """The report as one page. The same content gives the same text: no date stands in it.

    The browser is told to run the page's script and use its style and nothing else, by their hashes.
    """
    style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        _read("page.html.j2")
    )
    return template.render(
        title=title,
        content=content,
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        data=data_for_script(content),
    )


def data_for_script(content: Content) -> str:
    """Its JSON, which can stand in a `<script>` element whatever texts it holds: no `<` ends it or begins a comment.

    A lone surrogate, which UTF-8 cannot write, becomes JSON's own escape.
    """
    text = json.dumps(content, default=vars, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


__all__ = ["make_content", "render"]
