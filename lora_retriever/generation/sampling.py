"""`Sampling`: how the next token of a row is chosen, and `choose`, which chooses the next token of every row.

A drawn token depends on the row's own logits, temperature, top-p and random numbers, and not on the other rows. The
module uses token ids and logits: no text, no adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_retriever.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How one row is continued.

    Attributes:
        max_new_tokens: maximum length of the continuation, in tokens.
        temperature: 0: greedy, the most likely token. Above 0: tokens are drawn from softmax(logits / temperature).
        top_p: tokens are drawn from the fewest most likely tokens whose probabilities sum to at least `top_p`.
        seed: the seed of the row's random numbers. None: every call draws other numbers.
        stop: texts; the continuation ends with the token that completes one of these texts.
        logprobs: number of best tokens whose log-probabilities are told beside the log-probability of the chosen token.
            None: no log-probability is computed.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of its range, or a stop text is empty.
        """
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 0")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be a number from 0 on")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.logprobs is not None and self.logprobs < 0:
            raise UserError(f"logprobs is {self.logprobs}; it must be at least 0")
        if not all(self.stop):
            raise UserError("a stop text is empty; leave it out")


@dataclass(frozen=True)
class Token:
    """One token of a row.

    Attributes:
        id: the token.
        logprob: its log-probability under the model (temperature 1), in nats. None: not asked for, or the first token
            of a prompt, before which there is nothing.
        top: the most likely tokens at this place with their log-probabilities, the most likely first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(
    logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[torch.Generator | None]
) -> list[Token | None]:
    """The next token of every row. None: the row's logits are NaN or infinite.

    Args:
        logits: [rows, vocabulary], of any floating dtype.
        samplings: one for each row.
        draws: the random numbers of each row that is drawn; a row advances its own.
    """
    best = logits.max(dim=-1)  # the first of equal logits; argmax takes three times as long on a CPU
    tokens = best.indices  # [rows]
    # The best logit is NaN if any logit of the row is NaN.
    finite = best.values.isfinite()  # [rows]
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        uniform = [torch.rand((), generator=draws[row], dtype=torch.float64).item() for row in drawn]
        index = torch.tensor(drawn, device=logits.device)
        tokens = tokens.index_copy(0, index, _drawn(logits[index], [samplings[row] for row in drawn], uniform))
    # One transfer from the device: every transfer waits for the device.
    chosen = torch.stack([tokens, finite.to(tokens.dtype)], dim=1).tolist()
    wanting = [row for row, sampling in enumerate(samplings) if sampling.logprobs is not None and chosen[row][1]]
    told = {}
    if wanting:
        index = torch.tensor(wanting, device=logits.device)
        top = max(samplings[row].logprobs or 0 for row in wanting)
        for row, token in zip(wanting, with_logprobs(logits[index], tokens[index], top), strict=True):
            told[row] = Token(token.id, token.logprob, token.top[: samplings[row].logprobs])
    return [told.get(row, Token(token)) if is_finite else None for row, (token, is_finite) in enumerate(chosen)]


def _drawn(logits: Tensor, samplings: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    """Drawn tokens, int64 [rows]: by each row's uniform number in [0, 1), among the tokens that top-p leaves.

    The tokens are ordered by probability. The token is the first at which the sum of probabilities exceeds u · Σ p.
    """
    device = logits.device
    temperatures = torch.tensor([one.temperature for one in samplings], device=device, dtype=torch.float32)[:, None]
    limits = torch.tensor([one.top_p for one in samplings], device=device, dtype=torch.float32)[:, None]
    ordered = (logits.float() / temperatures).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    sums = ordered.values.cumsum(dim=-1)  # [rows, vocabulary]
    left = ordered.values.where(sums - ordered.values < limits, 0)  # the first token is always left
    sums = left.cumsum(dim=-1)
    reach = torch.tensor(uniform, device=device, dtype=torch.float32)[:, None] * sums[:, -1:]  # [rows, 1]
    last = (left > 0).sum(dim=-1, keepdim=True) - 1  # [rows, 1]
    place = torch.searchsorted(sums, reach, right=True).minimum(last)  # [rows, 1]
    return ordered.indices.gather(1, place)[:, 0]


def with_logprobs(logits: Tensor, tokens: Tensor, top: int) -> list[Token]:
    """Tokens with their log-probabilities, and the `top` best tokens with theirs.

    Args:
        logits: [n, vocabulary], of any floating dtype.
        tokens: int64 [n], the tokens at these places.
    """
    logprobs = logits.float().log_softmax(dim=-1)  # [n, vocabulary]
    own = logprobs.gather(1, tokens[:, None])[:, 0]  # [n]
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)  # [n, top]
    listed = zip(tokens.tolist(), own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    return [Token(token, value, tuple(zip(ids, values, strict=True))) for token, value, ids, values in listed]
