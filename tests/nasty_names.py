"""Names of tasks, domains, adapters and runs, notes and answers, which need escapes in some output language.

Every test of an output uses all these names.
"""

from __future__ import annotations

NASTY_NAMES = (
    # LaTeX
    "x^2 {y} \\z",
    "\\input{/etc/passwd}",
    "\\\\[5em] & $a_b$ % rest",
    "{}",
    "a--b ---c ''d'' ,,e ``f`` ?`g",
    "[after a row's end]",
    "*starred",
    "cost $a_b$ and $\\frac$",
    "#1 ~ x",
    # Markdown and HTML
    "two|bars||",
    "`code` **bold** _it_ __init__ best_selection ~~gone~~",
    "[link](javascript:alert(1))",
    "[ref]: http://example.org",
    "![image](x.png)",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt; &amp; &#60;",
    "R&D <= 3 > 2",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "1) item",
    "---",
    "===",
    "> quote",
    ": definition",
    "</script><!--",
    "{{ 7 * 7 }} {% raw %}",
    # rich's markup
    "[bold red]not bold[/]",
    "[/]",
    ":smile:",
    # CSV
    "=1+1",
    '=HYPERLINK("http://example.org","x")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "＝1+1",
    'comma, "quoted"; semicolon',
    # line ends and white space
    "two\nlines",
    "two\r\nlines\r",
    "a\u2028b\u2029c\x85d\x0be",
    " spaces around ",
    # terminals
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\link",
    "\x9b2J",
    "bell\x07 back\x08\x7f",
    "nul\x00",
    "right \u202eto left\u202c",
    "\u2066isolate\u2069 \u200emark",
    "zero\u200bwidth\ufeff",
    "tag \U000e0041",
    # scripts and encodings
    "费用",
    "日本語 テスト",
    "cafe\u0301",
    "Müller ß",
    "Приве́т",
    "שלום",
    "👩\u200d🔬 👍🏽",
    "half \ud83d",
    "½ x² ≤ ∞ − ± …",
    # shells
    "my results",
    "it's; rm -rf ~ $(touch x) `touch y`",
    "-rf",
    '!history "$HOME"',
    # places
    "../../etc",
    "a/b",
    "x" * 300,
)
