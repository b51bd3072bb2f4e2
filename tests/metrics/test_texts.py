"""The forms in which texts are compared: Unicode forms, line ends, and words of every script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from lora_retriever.metrics.texts import in_one_form, main_script, split_characters, without_punctuation, words


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("cafe\u0301", "café"),
        ("yes\r\n\r\nbecause", "yes\n\nbecause"),
        ("a\rb\x85c\u2028d\u2029e", "a\nb\nc\nd\ne"),
        ("\ufeffyes", "yes"),
        ("x²  ½ ﬁ Ａ", "x²  ½ ﬁ Ａ"),  # characters that readers distinguish stay different
        ("half a pair \ud83d", "half a pair \ud83d"),
    ],
)
def test_texts_that_a_reader_sees_as_equal_have_one_form(text: str, form: str) -> None:
    assert in_one_form(text) == form == in_one_form(form)


@pytest.mark.slow
@given(st.text())
def test_every_text_and_its_decomposed_form_become_equal(text: str) -> None:
    assert in_one_form(text) == in_one_form(unicodedata.normalize("NFD", text))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.text(st.characters(max_codepoint=127)))
def test_the_words_of_an_ascii_text_are_those_of_rouge_score(text: str) -> None:
    assert words(text) == DefaultTokenizer().tokenize(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Müller über Öl", ["müller", "über", "öl"]),
        ("сегодня хорошая погода!", ["сегодня", "хорошая", "погода"]),
        ("今天天气，很好。", list("今天天气很好")),
        ("ラーメンが好き", list("ラーメンが好き")),
        ("오늘 날씨", ["오늘", "날씨"]),
        ("ที่นี่ 12", ["ที่", "นี่", "12"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("العربيةُ، لغة", ["العربيةُ", "لغة"]),
        ("GPT4 很好 ok", ["gpt4", "很", "好", "ok"]),
        ("👍👍🏽 yes", ["👍", "👍", "yes"]),
        ("می\u200cخواهم co\xadop", ["میخواهم", "coop"]),
        ("\u0301 a \u0301b", ["a", "b"]),
        ("x_y-z", ["x", "y", "z"]),
        ("…؟।", []),
    ],
)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_punctuation_of_every_script_is_dropped_and_other_symbols_stay() -> None:
    assert without_punctuation("«да», «нет»؟ 好。") == "да нет 好"
    assert without_punctuation("3 €, $4, a+b = 20°") == "3 € 4 ab  20°"


def test_only_scripts_without_spaces_are_parted() -> None:
    assert split_characters("GPT是 模型 ที่นี่ да") == ["GPT", "是", "模", "型", "ที่", "นี่", "да"]
    assert split_characters("用Python写ที่ดี2天") == ["用", "Python", "写", "ที่", "ดี", "2", "天"]


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (["plain", "ASCII"], None),
        (["сегодня", "हिन्दी", "عربي", "Ελληνικά"], None),
        (["今天天气很好"], "Han"),
        (["今日は天気がいい"], "kana"),
        (["オフィス"], "kana"),
        (["오늘 날씨가 좋다"], "Hangul"),
        (["วันนี้อากาศดี"], "Thai, Lao, Khmer or Myanmar"),
        (["the word 好 in an English sentence"], None),
        (["今天", "OK"], None),  # equally many letters of both kinds
        (["好"], "Han"),
        (["今天天气", "OK", "hi"], None),  # four letters of both kinds
        (["今天天气很", "OK", "hi"], "Han"),
        (["今天天气很好很好好", "の"], "kana"),  # one letter of ten is kana
        (["今天天气很好很好好天", "の"], "Han"),  # one of eleven
        (["今天のの한국어"], "kana"),  # Han counts as kana beside kana
        ([], None),
        (["12 + 3"], None),
    ],
)
def test_the_script_of_most_letters_decides(texts: list[str], script: str | None) -> None:
    assert main_script(texts) == script
