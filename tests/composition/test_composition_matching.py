"""Modules are matched by PEFT's rules for every expression of a configuration, and within a time limit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from composition_cases import tiny_gpt2, tiny_llama
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from peft_composition import matching
from peft_composition.matching import PatternError, TargetMatcher

NAMES = [name for base in (tiny_llama(), tiny_gpt2()) for name, _ in base.named_modules() if name]
# Short, because a generated expression that backtracks must come to an end in PEFT's `re` too.
SHORT = [
    "q",
    "m.q",
    "m.l.0.q",
    "m.l.1.q",
    "m.l.10.v",
    "m.l.1.e.0.q",
    "l.a{e}",
    "a{1,",
    "[:a:]",
    "m.l.0.m.l.1.q_x",
    "m\nq",
]
PIECES = [
    "m", "l", "q", "v", "0", "1", "e", "x", "a", "_", ".", r"\.", r"\d", r"\w", r"\b", r"\Z", "^", "$", "|", ":",
    "-", "(", ")", "(?:", "(?=", "(?!", "(?<=", "(?i)", "(?P<n>", "(?P=n)", r"\1", "*", "+", "?", "*?", "{1}", "{,2}",
    "{1,}", "{,}", "{}", "{e}", "{e<=1}", "{", "}", r"\{", "[", "]", "[^", "[a-z]", "[:alpha:]", "[[:alpha:]]", "&&",
    "--", "~~", "||", "\n", "é", "ſ",
]  # fmt: skip
EXPRESSIONS = st.lists(st.sampled_from(PIECES), max_size=7).map("".join)
NAME_LISTS = st.lists(st.sampled_from(["q", "v", "m.q", "l.0.q", "1.q", "m.l.10.v", "0", "x"]), min_size=1, max_size=3)
LAYERS = st.none() | st.integers(-1, 11) | st.lists(st.integers(0, 11), max_size=3)


def outcome(call: Any) -> Any:
    """The result of a call, or "no expression" if its expression is refused."""
    try:
        return call()
    except (re.error, PatternError, RecursionError, OverflowError):
        return "no expression"


@pytest.mark.long
@settings(max_examples=600, deadline=None)
@given(wanted=EXPRESSIONS | NAME_LISTS, excluded=st.none() | EXPRESSIONS | NAME_LISTS)
def test_targets_and_exclusions_are_those_of_peft(wanted, excluded):
    config = LoraConfig(target_modules=wanted, exclude_modules=excluded)
    assume(config.target_modules)
    matcher = TargetMatcher(config)
    for name in SHORT:
        expected = outcome(lambda name=name: bool(check_target_module_exists(config, name)))
        assert outcome(lambda name=name: matcher.targets(name)) == expected, name


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(wanted=NAME_LISTS, layers=LAYERS, pattern=st.none() | EXPRESSIONS | st.lists(EXPRESSIONS, max_size=2))
def test_layers_are_those_of_peft(wanted, layers, pattern):
    assume(layers is not None or not pattern)
    config = LoraConfig(target_modules=wanted, layers_to_transform=layers, layers_pattern=pattern)
    matcher = TargetMatcher(config)
    for name in SHORT:
        expected = outcome(lambda name=name: bool(check_target_module_exists(config, name)))
        assert outcome(lambda name=name: matcher.targets(name)) == expected, name


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(keys=st.lists(EXPRESSIONS, max_size=3, unique=True))
def test_keys_of_patterns_are_those_of_peft(keys):
    matcher = TargetMatcher(LoraConfig(target_modules=["q"]))
    for name in SHORT:
        expected = outcome(lambda name=name: get_pattern_key(keys, name))
        assert outcome(lambda name=name: matcher.pattern_key(keys, name)) == expected, name


@pytest.mark.parametrize(
    "wanted",
    [
        r".*\.(q_proj|v_proj)",
        r"(?:.*?(?:language|text|model).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|k_proj|v_proj|c_attn).*?)",
        r"model\.layers\.(0|1)\.self_attn\.[qkvo]_proj",
        r"^(?!.*lm_head).*(proj|c_fc)$",
        "q_proj",
        ["q_proj", "transformer.h.0.attn.c_attn", "mlp.down_proj"],
    ],
    ids=str,
)
def test_usual_expressions_on_whole_models(wanted):
    config = LoraConfig(target_modules=wanted)
    matcher = TargetMatcher(config)
    assert [n for n in NAMES if matcher.targets(n)] == [n for n in NAMES if check_target_module_exists(config, n)]


CATASTROPHIC = [
    r"((\w|\.)+)+[A-Z]",
    r"(.*.*)*\.zz",
    r"(\w*\.?\w*)*[!]",
    r"(?P<a>.*)(?P<b>.*)(?P<c>.*)(?P<d>.*).*(?P=a)(?P=b)(?P=c)(?P=d)[A-Z]",
]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_an_expression_that_would_backtrack_for_years_comes_to_an_end(pattern):
    config = LoraConfig(target_modules=["q_proj"], exclude_modules=pattern)
    name = "model.layers.11.self_attn.q_proj"
    assert TargetMatcher(config).targets(name)
    assert not TargetMatcher(LoraConfig(target_modules=pattern)).targets(name)
    assert TargetMatcher(config).pattern_key([pattern], name) == name
    layers = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=pattern)
    assert not TargetMatcher(layers).targets(name)


def test_all_matching_of_an_adapter_has_one_limit_of_time(monkeypatch):
    monkeypatch.setattr(matching, "MATCHING_SECONDS", 0.0)
    with pytest.raises(PatternError, match=r"'\.\*q_proj' takes longer than 0 s to match; write the names"):
        TargetMatcher(LoraConfig(target_modules=".*q_proj")).targets("q_proj")


@pytest.mark.parametrize(
    "pattern", ["([", "(" * 5000 + ")" * 5000, "a{99999999999999999999}", "a" * 100_001, r"(?P<n>a)(?P<n>b)", "*"]
)
def test_what_is_no_usable_expression_is_said(pattern):
    with pytest.raises(PatternError, match=r"not a usable regular expression|characters; at most"):
        TargetMatcher(LoraConfig(target_modules=pattern)).targets("model.q_proj")
