"""From texts to tokens. Special tokens come from the template and the tokenizer; the text of a row is always text.

Prompts, answers that are trained on, and measured prompts are all tokenised here. The module reads texts and
tokenizers only: it uses no model, adapter or batch.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

INPUTS = "{inputs}"
"""The part of a template that the input of a row replaces."""


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer adds to a text by itself.

    Attributes:
        before: the tokens before the text, such as a BOS token.
        after: the tokens after the text, such as an EOS token. No prompt gets them.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Filling:
    """A text in which special tokens are parsed in the parts, and the fills are ordinary text.

    Attributes:
        parts: the texts around the fills.
        fills: the texts between each two of the parts.
        framed: whether the tokens that the tokenizer puts before a text (a BOS token) come first, once, also if the
            text writes these tokens out. If False, the prompt has only the tokens that the text writes out.
    """

    parts: tuple[str, ...]
    fills: tuple[str, ...]
    framed: bool = True

    @property
    def text(self) -> str:
        """The whole text."""
        return self.parts[0] + "".join(fill + part for fill, part in zip(self.fills, self.parts[1:], strict=True))

    def followed_by(self, fill: str) -> Filling:
        """The text with one more fill at its end."""
        return Filling((*self.parts, ""), (*self.fills, fill), self.framed)

    def then(self, other: Filling) -> Filling:
        """This text and another text behind it."""
        return Filling(
            (*self.parts[:-1], self.parts[-1] + other.parts[0], *other.parts[1:]),
            (*self.fills, *other.fills),
            self.framed,
        )

    def without_space_at_end(self) -> Filling:
        """The text without the white space at its end."""
        parts, fills = list(self.parts), list(self.fills)
        parts[-1] = parts[-1].rstrip()
        while fills and not parts[-1]:
            fills[-1] = fills[-1].rstrip()
            if fills[-1]:
                break
            del fills[-1]
            parts[-2:] = [parts[-2].rstrip()]
        return Filling(tuple(parts), tuple(fills), self.framed)

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens of the text. The tokens that the tokenizer puts after a text (an EOS token) are left out.

        Raises:
            UserError: the tokenizer cannot tell the special tokens of the parts from the text of the fills.
        """
        frame, own = _between(tokenizer, self)
        if not self.framed:
            return own
        before = list(frame.before)
        tokens = own if before and own[: len(before)] == before else before + own
        bos = tokenizer.bos_token_id
        while len(tokens) > 1 and bos is not None and tokens[0] == tokens[1] == bos:
            del tokens[0]
        return tokens

    def spans(self) -> list[tuple[int, int]]:
        """Where the fills stand in the text, as characters [start, end)."""
        found, end = [], 0
        for part, fill in zip(self.parts, self.fills, strict=False):
            start = end + len(part)
            end = start + len(fill)
            found.append((start, end))
        return found


def template_filling(template: str, inputs: str) -> Filling:
    """The text of `template` with `inputs` in place of every `{inputs}`."""
    parts = template.split(INPUTS)
    return Filling(tuple(parts), (inputs,) * (len(parts) - 1))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, template: str, inputs: str) -> list[int]:
    """The tokens of `template` with `inputs` in place of every `{inputs}`.

    Template and inputs are tokenised together, so tokens may reach across their border. A special token that the
    template writes out is parsed. The same characters in `inputs` are ordinary text. The tokens that the tokenizer
    puts before a text (a BOS token) come first, once, also if the template writes them out. The tokens that the
    tokenizer puts after a text (an EOS token) are left out.
    """
    return template_filling(template, inputs).tokens(tokenizer)


def text_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text without any special token: special tokens that the text writes out are ordinary text."""
    _, body = _framed(tokenizer, text)
    alone = Filling(("", ""), (text,))
    if _special_within(tokenizer, alone, body):
        return _literal_tokens(tokenizer, alone, body)
    return body.tokens


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The special tokens that a tokenizer adds to a text by itself."""
    return _framed(tokenizer, "a")[0]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of a tokenizer's special tokens, by the tokens' texts. The tokens are listed once for each tokenizer."""
    state = (len(tokenizer), str(tokenizer.special_tokens_map))
    kept = _SPECIAL.get(tokenizer)
    if kept is not None and kept[0] == state:
        return kept[1]
    added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in tokenizer.all_special_tokens}
    found = {text: id for text, id in {**named, **added}.items() if text and isinstance(id, int)}
    _SPECIAL[tokenizer] = state, found
    return found


def _between(tokenizer: PreTrainedTokenizerBase, filling: Filling) -> tuple[Frame, list[int]]:
    """The special tokens that the tokenizer puts around a text, and the tokens of the text."""
    frame, body = _framed(tokenizer, filling.text)
    if _special_within(tokenizer, filling, body):
        return frame, _literal_tokens(tokenizer, filling, body)
    return frame, body.tokens


@dataclass(frozen=True)
class _Body:
    """The tokens of a text, with the characters [start, end) of each token. None: the tokenizer does not tell."""

    tokens: list[int]
    offsets: list[tuple[int, int]] | None = None


def _framed(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Frame, _Body]:
    """The special tokens that a tokenizer puts around a text, and the tokens of the text itself."""
    if tokenizer.is_fast:
        whole = tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=True)
        # added: 1 for tokens that the tokenizer added to the text
        ids, added = whole["input_ids"], whole["special_tokens_mask"]
        start = next((index for index, mark in enumerate(added) if not mark), None)
        if start is not None:
            end = len(ids) - next(index for index, mark in enumerate(reversed(added)) if not mark)
            return Frame(tuple(ids[:start]), tuple(ids[end:])), _Body(
                ids[start:end], whole["offset_mapping"][start:end]
            )
    else:
        ids, own = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
        places = range(len(ids) - len(own) + 1)
        start = next((index for index in places if own and ids[index : index + len(own)] == own), None)
        if start is not None:
            return Frame(tuple(ids[:start]), tuple(ids[start + len(own) :])), _Body(own)
        if own:
            return Frame((), ()), _Body(own)
    # A text without a token of its own: an EOS or separator token ends the text, all others begin it.
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {tokenizer.bos_token_id}
    start = next((index for index, id in enumerate(ids) if id in ends), len(ids))
    return Frame(tuple(ids[:start]), tuple(ids[start:])), _Body([])


def _special_within(tokenizer: PreTrainedTokenizerBase, filling: Filling, body: _Body) -> bool:
    """Whether a tokenizer parsed a special token in the fills of a text."""
    special = special_tokens(tokenizer)
    if body.offsets is None:
        return any(token in fill for fill in filling.fills for token in special)
    parsed = _parsed(filling.text, body, special, tokenizer.unk_token_id)
    return any(start < stop and end > begin for start, end, _ in parsed for begin, stop in filling.spans())


def _parsed(text: str, body: _Body, special: Mapping[str, int], unknown: int | None) -> list[tuple[int, int, str]]:
    """The special tokens that a text writes out: start and end of the characters, and the token.

    An unknown word also becomes a special token, such as `<unk>`. Such a token counts only if the text writes it out.
    """
    assert body.offsets is not None
    by_id = {id: token for token, id in special.items()}
    found = []
    for id, (start, end) in zip(body.tokens, body.offsets, strict=True):
        written = text[start:end]
        if id in by_id and (id != unknown or written.strip() == by_id[id]):
            start += len(written) - len(written.lstrip())  # a token may take the white space around it
            found.append((start, start + len(written.strip()), by_id[id]))
    return found


def _literal_tokens(tokenizer: PreTrainedTokenizerBase, filling: Filling, body: _Body) -> list[int]:
    """The tokens of a text. Special tokens are parsed in the parts alone.

    Args:
        body: the tokens of the text, with special tokens parsed everywhere.

    Raises:
        UserError: the tokenizer cannot tell the special tokens of the parts from the text of the fills.
    """
    special = special_tokens(tokenizer)
    if body.offsets is None:
        return _tokens_by_parts(tokenizer, filling, special)
    literal = _literal_tokenizer(tokenizer, special)
    text, spans = filling.text, filling.spans()
    marked, end, expected = "", 0, []
    for start, stop, token in _parsed(text, body, special, tokenizer.unk_token_id):
        if not any(start < span[1] and stop > span[0] for span in spans):
            marked += text[end:start] + literal.stand_ins[token]
            end = stop
            expected.append(special[token])
    ids: list[int] = literal.tokenizer.encode(marked + text[end:], add_special_tokens=False).ids
    known = set(special.values()) - {tokenizer.unk_token_id}
    if [id for id in ids if id in known] != [id for id in expected if id in known]:
        with_token = (fill for fill in filling.fills if any(token in fill for token in special))
        written = next(with_token, filling.fills[0])
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: cannot read special tokens that a row writes out as text: "
            f"{written[:40]!r}; remove them from the row"
        )
    return ids


def _tokens_by_parts(tokenizer: PreTrainedTokenizerBase, filling: Filling, special: Mapping[str, int]) -> list[int]:
    """`_literal_tokens` for a tokenizer written in Python: the texts between special tokens one by one."""
    # Of tokens that begin alike the longest is meant, as in every tokenizer.
    pattern = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    texts, written = [""], []  # the texts between special tokens, and the special tokens
    for part, fill in zip(filling.parts, ["", *filling.fills], strict=True):
        texts[-1] += fill
        end = 0
        for found in pattern.finditer(part):
            texts[-1] += part[end : found.start()]
            texts.append("")
            written.append(found[0])
            end = found.end()
        texts[-1] += part[end:]
    for index, token in enumerate(written):  # a token may take the white space around it
        if token in added and added[token].lstrip:
            texts[index] = texts[index].rstrip()
        if token in added and added[token].rstrip:
            texts[index + 1] = texts[index + 1].lstrip()
    tokens = _split(tokenizer, texts[0])
    for token, text in zip(written, texts[1:], strict=True):
        tokens += [special[token], *_split(tokenizer, text)]
    return tokens


def _split(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text under a tokenizer written in Python. No special token in the text is parsed."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokens if text else []


@dataclass(frozen=True)
class _Literal:
    """A copy of a tokenizer under which special tokens are written as stand-ins, and their own texts are text.

    `split_special_tokens` of transformers is not enough: a tokenizer whose vocabulary has the text of a special token
    (words, or pieces of a Unigram model) still finds the token there.

    Attributes:
        special: the ids of the special tokens by their texts.
        stand_ins: the text that stands for each special token. The texts are random: no row has them.
    """

    tokenizer: Tokenizer
    special: Mapping[str, int]
    stand_ins: Mapping[str, str]


_SPECIAL: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, dict[str, int]]] = WeakKeyDictionary()
_LITERAL: WeakKeyDictionary[PreTrainedTokenizerBase, _Literal] = WeakKeyDictionary()


def _literal_tokenizer(tokenizer: PreTrainedTokenizerBase, special: dict[str, int]) -> _Literal:
    """The copy of a tokenizer for texts that contain special tokens. Each tokenizer gets one copy, which is kept."""
    kept = _LITERAL.get(tokenizer)
    if kept is not None and kept.special == special:
        return kept
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    stand_ins = {token: uuid.uuid4().hex for token in special}
    _rename(content, special, stand_ins)
    literal = _Literal(Tokenizer.from_str(json.dumps(content)), special, stand_ins)
    _LITERAL[tokenizer] = literal
    return literal


def _rename(content: dict[str, Any], special: Mapping[str, int], stand_ins: Mapping[str, str]) -> None:
    """Put the stand-ins in place of special tokens in the content of a tokenizer.json. All ids stay."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {token["content"]: token for token in content["added_tokens"]}
    for token in special:
        added.setdefault(token, plain)
    content["added_tokens"] = [
        {**entry, "id": special[token], "content": stand_ins[token], "special": False}
        if token in special
        else {**entry, "special": False}
        for token, entry in added.items()
    ]
    content["post_processor"] = content["truncation"] = content["padding"] = None
    ids = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    model = content["model"]
    if model.get("unk_token") in stand_ins:
        model["unk_token"] = stand_ins[model["unk_token"]]
    if isinstance(model["vocab"], list):  # a Unigram model: a list of pieces and scores, and the index is the id
        model["vocab"] = _renamed_pieces(model["vocab"], ids, stand_ins)
        return
    # The vocabulary names all added tokens, so that the copy cannot count their ids anew.
    model["vocab"] = ids | {token: id for token, id in model["vocab"].items() if token not in special}
    if "merges" in model:
        pairs = [(merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        model["merges"] = [merge for merge, (a, b) in pairs if not {a, b, a + b} & special.keys()]


def _renamed_pieces(pieces: list[list[Any]], ids: Mapping[str, int], stand_ins: Mapping[str, str]) -> list[list[Any]]:
    """The pieces of a Unigram model with the stand-ins, and with all added tokens at their ids."""
    lowest = min((score for _, score in pieces), default=0.0)  # the score of an unknown piece depends on the lowest
    by_id = {id: token for token, id in ids.items()}
    size = max(len(pieces), *(id + 1 for id in by_id), 0)
    filled = [*pieces, *([uuid.uuid4().hex, lowest] for _ in range(size - len(pieces)))]
    return [
        [stand_ins.get(piece, piece) if index < len(pieces) else by_id.get(index, piece), score]
        for index, (piece, score) in enumerate(filled)
    ]
