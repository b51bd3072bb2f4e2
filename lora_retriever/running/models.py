"""Checks of a profile's models and adapters before any model weights are loaded, for `run` and `doctor`.

Only configurations, tokenizers and the headers of safetensors files are read. The base is built without model weights,
on torch's meta device, so that names and shapes of its modules are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

from lora_retriever.errors import UserError, one_line_of
from lora_retriever.generation.settings import GenerationSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_retriever.generation.limits import Limits
    from peft_composition import AdapterHeader

NAMES_LISTED = 5
"""Maximum number of adapters that one warning lists by name."""


@dataclass(frozen=True)
class BaseFindings:
    """A base model without its model weights, its tokenizer, and warnings about the two.

    Attributes:
        warnings: one line for each limit that long rows exceed, and each difference of base and tokenizer.
    """

    skeleton: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    warnings: tuple[str, ...]


@dataclass
class AdapterFindings:
    """The adapters of a pool.

    Attributes:
        headers: the adapters that can be composed, by name.
        problems: why an adapter cannot be composed, one line for each such adapter.
        warnings: notes on adapters that can be composed, one line for each note.
    """

    headers: dict[str, AdapterHeader] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def inspect_base(base: Path, settings: GenerationSection) -> BaseFindings:
    """Check a base model.

    Raises:
        UserError: the base or its tokenizer cannot be loaded, or the base has fewer positions than the settings need.
    """
    from lora_retriever.generation.compatibility import differences
    from lora_retriever.generation.limits import check_settings, length_warnings, limits_of
    from lora_retriever.generation.loading import load_tokenizer, skeleton

    tokenizer = load_tokenizer(base)
    model = skeleton(base)
    limits = limits_of(model)
    check_settings(limits, settings)
    found = [*differences(model.config, model.generation_config, tokenizer), *length_warnings(limits, settings)]
    return BaseFindings(model, tokenizer, limits, tuple(found))


def inspect_adapters(
    adapters: Mapping[str, Path | UserError], base: PreTrainedModel | None, detects: bool = False
) -> AdapterFindings:
    """Check every adapter of a pool, so that all adapters with problems are named at once.

    Args:
        adapters: the folder of each adapter, or why there is none.
        base: the base without model weights. None: the adapters are checked without a base.
        detects: whether the adapters' detection heads are used.
    """
    from lora_retriever.generation.detecting import read_head
    from peft_composition import AdapterError, inspect_adapter

    found = AdapterFindings()
    notes: defaultdict[str, list[str]] = defaultdict(list)
    for name, folder in adapters.items():
        if isinstance(folder, UserError):
            found.problems.append(f"adapter {name!r}: {folder}")
            continue
        try:
            header = inspect_adapter(folder, name, base)
            if detects:
                read_head(folder)
        except UserError as error:
            found.problems.append(f"adapter {name!r}: {error}")
        except AdapterError as error:
            found.problems.append(str(error))
        except Exception as error:  # a library that reads the file failed; other adapters are still checked
            found.problems.append(f"adapter {name!r}: {folder} cannot be read: {one_line_of(error)}")
        else:
            found.headers[name] = header
            for note in header.notes:
                notes[note].append(name)
    found.warnings = [f"{_named(names)}: {note}" for note, names in notes.items()]
    return found


def check_adapters(findings: AdapterFindings) -> None:
    """Refuse a pool with adapters that cannot be composed.

    Raises:
        UserError: there are such adapters. The message names all these adapters.
    """
    problems = findings.problems
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        total = len(problems) + len(findings.headers)
        raise UserError("\n".join([f"{len(problems)} of {total} adapters cannot be composed:", *problems]))


@contextmanager
def without_adapter_warnings() -> Iterator[None]:
    """Load adapters without their warnings: `inspect_adapters` has given the notes of all adapters."""
    from peft_composition import AdapterWarning

    with catch_warnings():
        simplefilter("ignore", AdapterWarning)
        yield


def _named(names: list[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:NAMES_LISTED])
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return f"adapter{'s' if len(names) > 1 else ''} {listed}{more}"
