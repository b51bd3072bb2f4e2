"""Templates are found again in inputs that were made from known templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lora_retriever.analysis.retrieval.templates import _common_ends, find_templates, group_by_template, shared_words
from lora_retriever.data.rows import read_pool, read_rows

TEMPLATES = {
    "before": "Is the sentiment of this sentence positive or negative?\n{}\nOPTIONS:\n- negative\n- positive",
    "after": "{}\n\nHow would the sentiment be perceived?\n\nOPTIONS:\n- negative\n- positive",
    "around": 'Short movie review: "{}"\nDid the critic like it?',
    "short": "Q: {} A:",
    "bare": "{}",
}
REVIEWS = [
    "a gripping movie , played with understated performances",
    "kinnear rather delivers a performance of striking skill",
    "yet another studio horror franchise with glitches",
    "every idea in this film is flushed down the latrine",
    "the picture is unfocused and tells us nothing new",
    "moody , heartbreaking and filmed in stark black and white",
]
MADE = [(name, template.format(review)) for review in REVIEWS for name, template in TEMPLATES.items()]

TRANSLATIONS: dict[str, Callable[[str], bool]] = {
    "to": lambda text: text.endswith("\nTranslate to German"),
    "back": lambda text: text.endswith("\nTranslate to English"),
    "could you": lambda text: text.endswith("\nCould you please translate this to English?"),
    "this": lambda text: text.endswith("\nTranslate this to English?"),
    "colon": lambda text: text.startswith("Translate to German:\n"),
    "following": lambda text: text.startswith("Translate the following sentence to German:\n"),
    "how": lambda text: text.startswith('How is "') and text.endswith('said in German?'),
    "quoted": lambda text: text.startswith('Translate "') and text.endswith('to German?'),
    "write": lambda text: text == "Write a sentence not in English.",
    "which": lambda text: text.endswith("\nWhich language is this?"),
}  # fmt: skip
ENTAILMENTS: dict[str, Callable[[str], bool]] = {
    "above": lambda text: "\nBased on the paragraph above can we conclude that" in text,
    "that": lambda text: "\nBased on that paragraph can we conclude that" in text,
    "draw": lambda text: "\nCan we draw the following conclusion?\n" in text,
    "follow": lambda text: "\nDoes this next sentence follow, given the preceding text?\n" in text,
    "infer": lambda text: "\nCan we infer the following?\n" in text,
    "paragraph": lambda text: text.startswith("Read the following paragraph and determine"),
    "text": lambda text: text.startswith("Read the text and determine"),
    "context": lambda text: text.startswith("Can we draw the following hypothesis from the context?"),
    "below": lambda text: text.startswith("Determine if the sentence is true based on the text below:"),
    "generate": lambda text: text == "Generate a context and a hypothesis.",
}


def parts(labels: Iterable[object], things: Sequence[object]) -> set[frozenset[object]]:
    """The sets of things with equal labels: two groupings are equal if only names and orders differ."""
    grouped: dict[object, set[object]] = {}
    for label, thing in zip(labels, things, strict=True):
        grouped.setdefault(label, set()).add(thing)
    return {frozenset(group) for group in grouped.values()}


def test_templates_with_words_before_after_around_and_without_are_told_apart() -> None:
    names, texts = zip(*MADE, strict=True)
    assert parts(group_by_template(texts), texts) == parts(names, texts)


def test_the_order_of_the_inputs_makes_no_difference() -> None:
    texts = [text for _, text in MADE]
    shuffled = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]
    assert parts(group_by_template(shuffled), shuffled) == parts(group_by_template(texts), texts)


def test_groups_are_numbered_by_their_first_inputs() -> None:
    assert group_by_template([text for _, text in MADE]).tolist() == [0, 1, 2, 3, 4] * len(REVIEWS)


@pytest.mark.parametrize("texts", [[], ["alone"], ["the same"] * 7, [f"Sum up: {review}" for review in REVIEWS]])
def test_inputs_of_one_template_are_one_group(texts: list[str]) -> None:
    assert group_by_template(texts).tolist() == [0] * len(texts)


def test_a_template_of_two_inputs_is_not_told_from_what_shares_nothing() -> None:
    """Fewer than three inputs are too few to find the template's own words."""
    texts = [text for name, text in MADE if name in ("before", "bare")]
    rare = ["Write a long movie review, please.", "Write a long movie review, please."]
    groups = group_by_template([*texts, *rare])
    assert groups[-1] == groups[-2] == groups[texts.index(REVIEWS[0])]
    assert groups[0] != groups[-1]


def test_a_row_is_unseen_if_no_sample_of_its_own_adapter_has_its_template() -> None:
    """`reviews` has no sample of `short`, and `others` has one. A task without an adapter has no samples at all."""
    made = {name: [text for other, text in MADE if other == name] for name in TEMPLATES}
    samples = [[*made["before"][:2], *made["after"][:2]], made["short"][:2]]
    tasks = ["reviews"] * 12 + ["others"] * 3 + ["nobody's"]
    inputs = [*made["before"][2:], *made["after"][2:], *made["short"][2:], *made["short"][2:5], made["before"][0]]
    templates = find_templates(["reviews", "others"], samples, tasks, inputs)
    assert templates.unseen().tolist() == [False] * 8 + [True] * 4 + [False] * 3 + [True]
    assert templates.own.tolist() == [0] * 12 + [1] * 3 + [-1]


def test_shared_words_show_the_template() -> None:
    texts = [text for name, text in MADE if name == "around"]
    assert shared_words(texts) == 'Short movie review : " … " ⏎ Did the critic like it ?'
    assert shared_words(texts[:1]).startswith('Short movie review : " a gripping movie')


PATHOLOGICAL = {
    "dots": "." * 20_000,
    "words": "yes no " * 10_000,
    "lines": "a\n" * 20_000,
    "a long word": "a" * 1_000_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PATHOLOGICAL)
def test_long_repetitive_texts_are_compared_by_their_ends(kind: str) -> None:
    """Word by word, two texts of 20,000 dots have 400 million pairs of equal words."""
    text = PATHOLOGICAL[kind]
    texts = [f"Is it so ? {text} {end}" for end in ("yes", "no", "both")]
    assert group_by_template([*texts, "Is it so ? x yes", "Is it so ? z no"]).shape == (5,)
    assert shared_words(texts).startswith("Is it so ?")
    assert shared_words(texts).endswith("…")
    assert shared_words([texts[0], texts[0]]) == shared_words([texts[0]])


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        ("a b c d e", "a b x d e", "a b … d e"),
        ("a b c", "a b c", "a b c"),
        ("a b c", "x y", "…"),
        ("a b", "a b c", "a b …"),
        ("b c", "a b c", "… b c"),
        ("a a a", "a a", "a a …"),
    ],
)
def test_common_ends_by_hand(left: str, right: str, common: str) -> None:
    assert _common_ends(left.split(), right.split()) == common.split()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "known"), [("wmt16_translate_deen", TRANSLATIONS), ("rte", ENTAILMENTS)])
def test_templates_of_official_tasks_are_found_as_a_reader_finds_them(
    official: Path, task: str, known: dict[str, Callable[[str], bool]]
) -> None:
    (samples,) = ([s.inputs for s in e.sample] for e in read_pool(official / "config2.json") if e.model_name == task)
    texts = [*samples, *(row.inputs for row in read_rows(official / "combined_test.json") if row.task == task)]
    by_eye = [next(name for name, fits in known.items() if fits(text)) for text in texts]
    assert parts(group_by_template(texts), range(70)) == parts(by_eye, range(70))


@pytest.mark.slow
def test_the_official_benchmark_has_about_ten_templates_a_task(official: Path) -> None:
    """FLAN has ten. By its published templates 216 of the 2,395 rows are unseen; the rule finds some more."""
    pool, rows = read_pool(official / "config2.json"), read_rows(official / "combined_test.json")
    templates = find_templates(
        [entry.model_name for entry in pool],
        [[sample.inputs for sample in entry.sample] for entry in pool],
        [row.task for row in rows],
        [row.inputs for row in rows],
    )
    counts = [
        len({*groups.tolist(), *templates.rows[templates.own == place].tolist()})
        for place, groups in enumerate(templates.samples)
    ]
    assert 9 <= np.mean(counts) <= 10.5
    assert 216 <= templates.unseen().sum() <= 240
