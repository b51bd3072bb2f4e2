"""Which modules the configuration of an adapter targets, by PEFT's rules, within a time limit.

PEFT takes regular expressions from `target_modules`, `exclude_modules`, `layers_pattern` and the keys of `rank_pattern`
and `alpha_pattern`. Python's `re` has no time limit, so an expression with catastrophic backtracking would never
return. The package `regex` has a time limit. An expression must first be valid for `re`. Then the parts that have a
meaning only in `regex` are escaped, so that the two packages match the same names.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Collection, Iterable
from typing import Any, Literal

import regex
from peft import LoraConfig

from peft_composition.errors import quoted, reason_of

MATCHING_SECONDS = 10.0
"""Maximum time for matching the patterns of one adapter with all modules of a base, in seconds."""

LONGEST_PATTERN = 100_000
"""Maximum length of one pattern, in characters."""

_REPETITION = re.compile(r"\{(?P<least>\d*)(?P<most>,\d*)?\}")


class PatternError(ValueError):
    """A pattern is no regular expression, or takes too long."""


class TargetMatcher:
    """Matches names of modules with one configuration. All its calls together have `MATCHING_SECONDS`."""

    def __init__(self, config: LoraConfig, targets: str | Collection[str] | None = None) -> None:
        """Match with `config`. `targets` replaces the target_modules of the configuration, if given."""
        self._config = config
        self._targets: str | Collection[str] = (targets if targets is not None else config.target_modules) or ()
        self._compiled: dict[str, Any] = {}
        self._seconds_left = MATCHING_SECONDS

    def targets(self, module: str) -> bool:
        """Return whether an adapter of this configuration adapts a module, by the module's name in the base.

        The rules are the rules of PEFT's `check_target_module_exists`. Raises `PatternError`.
        """
        excluded = self._config.exclude_modules
        if excluded and self._is_listed(module, excluded):
            return False
        if isinstance(self._targets, str):
            return self._match("fullmatch", self._targets, module) is not None
        if module in self._targets:
            return True
        return self._is_listed(module, self._targets) and self._is_in_layers(module)

    def pattern_key(self, keys: Iterable[str], module: str) -> str:
        """Return the first key of a rank_pattern or an alpha_pattern that fits a module, or `module` if no key fits.

        The rules are the rules of PEFT's `get_pattern_key`. Raises `PatternError`.
        """
        return next((key for key in keys if self._match("match", rf"(.*\.)?({key})$", module) is not None), module)

    def _is_listed(self, module: str, names: str | Collection[str]) -> bool:
        """Whether a module's name matches an expression, or equals a name of a list or ends with `.` and this name."""
        if isinstance(names, str):
            return self._match("fullmatch", names, module) is not None
        return module in names or any(module[i + 1 :] in names for i, letter in enumerate(module) if letter == ".")

    def _is_in_layers(self, module: str) -> bool:
        """Whether a module lies in one of the layers of `layers_to_transform`, if the configuration names any."""
        layers = self._config.layers_to_transform
        if layers is None or layers == []:
            return True
        patterns = self._config.layers_pattern
        if not patterns:
            expressions = [r".*?\.[^.]*\.(?P<idx>\d+)\."]
        else:
            listed = [patterns] if isinstance(patterns, str) else patterns
            expressions = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in listed]
        for expression in expressions:
            match = self._match("match", expression, module)
            if match is not None:
                index = match.group("idx")  # None if an alternative of the pattern leads past the index
                listed_layers = [layers] if isinstance(layers, int) else layers
                return index is not None and int(index) in listed_layers
        return False

    def _match(self, how: Literal["match", "fullmatch"], pattern: str, module: str) -> Any:
        """Return the match of a pattern with a module's name, or None."""
        begun = time.perf_counter()
        if pattern not in self._compiled:
            self._compiled[pattern] = _compiled(pattern)
        try:
            if self._seconds_left <= 0:
                raise TimeoutError
            return getattr(self._compiled[pattern], how)(module, timeout=self._seconds_left)
        except TimeoutError as error:
            reason = f"the pattern {quoted(pattern)} takes longer than {MATCHING_SECONDS:g} s to match"
            raise PatternError(f"{reason}; write the names of the modules instead") from error
        finally:
            self._seconds_left -= time.perf_counter() - begun


def _compiled(pattern: str) -> Any:
    """Compile a pattern for `regex`, so that `regex` matches the same texts as `re`. Raises `PatternError`."""
    if len(pattern) > LONGEST_PATTERN:
        raise PatternError(f"a pattern has {len(pattern)} characters; at most {LONGEST_PATTERN} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
            return regex.compile(_without_extensions(pattern), cache_pattern=False)
    except (re.error, regex.error, RecursionError, OverflowError, ValueError, IndexError) as error:
        raise PatternError(f"{quoted(pattern)} is not a usable regular expression: {reason_of(error)}") from error


def _without_extensions(pattern: str) -> str:
    """Escape the parts that have a meaning only in `regex`: braces that are no repetition, classes like [[:alpha:]]."""
    written = []
    position = 0
    while position < len(pattern):
        letter = pattern[position]
        repetition = _REPETITION.match(pattern, position) if letter == "{" else None
        if letter == "\\":
            written.append(pattern[position : position + 2])
            position += 2
        elif repetition is not None and repetition.group() != "{}":
            written.append(f"{{{repetition['least'] or 0}{repetition['most'] or ''}}}")
            position = repetition.end()
        elif letter == "{":
            written.append(r"\{")
            position += 1
        elif pattern.startswith("[:", position):
            written.append(r"[\:")
            position += 2
        else:
            written.append(letter)
            position += 1
    return "".join(written)
