"""Sampling rows side by side: prompts in whole, then a token a row a step until all rows end.

Each row draws from its own generator, so a sample does not depend on the rows beside it (but for
the rounding of a product over more rows, 1e-6 in a logit). Only the ids that a row's grammar allows
are scored. With classifier-free guidance (CM3Leon, arXiv:2309.02591) a second row, which saw no
prompt, goes along with each guided one: logits are l_u + A (l_c - l_u). Letter: `A` allowed ids.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from plait.models.decoder import Decoder
from plait.models.generation.grammar import Walk
from plait.pipeline.vocabulary import PAD
from plait.tokenizers.errors import ConfigError

GUIDED = ("image", "speech")
"""Modalities that `--guidance` and `--contrast` are for."""
LIKELY = 0.1
"""What a contrasted id has of the k-th likeliest's probability at least (arXiv:2210.15097)."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen; a value out of range is a ConfigError."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Sample among the fewest likeliest tokens whose probabilities reach this sum; 1 is all."""
    guidance: float = 1.0
    """Of pictures and speech by the prompt: 1 is none, 3 is strong, 0 ignores the prompt."""
    contrast: int = 0
    """Contrastive decoding (CD-K) in guidance's place: ids by how much likelier the prompt makes
    them, among those at least a tenth as likely as the k-th likeliest; 0 is off."""
    seed: int = 0
    """Of all samples; each has its own draws, by the numbers of its prompt and of itself."""

    def __post_init__(self) -> None:
        for name in ("temperature", "guidance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name} {getattr(self, name)}: it should be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p}: it should be above 0, and 1 at most")
        for name in ("top_k", "seed", "contrast"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: it should be 0 or more")
        if self.contrast and self.guidance != 1:
            raise ConfigError("--contrast and --guidance: one of them can be had at a time")

    @property
    def guided(self) -> bool:
        """Whether rows that saw no prompt go along."""
        return self.guidance != 1 or self.contrast > 0


@dataclass(kw_only=True, eq=False)
class Row:
    """One sample in the making."""

    prompt: tuple[int, ...]
    """Global ids, up to the begin marker of what is sampled."""
    walk: Walk
    draws: np.random.Generator
    unguided: tuple[int, ...] | None = None
    """What the row beside it saw, which guides its pictures and speech."""


@dataclass(kw_only=True)
class Speed:
    """Tokens and seconds of what was done."""

    prefill_tokens: int = 0
    """Of prompts; one that several rows share counts once."""
    prefill_s: float = 0.0
    sampled_tokens: int = 0
    sampled_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of prompts taken in a second."""
        return self.prefill_tokens / max(self.prefill_s, 1e-9)

    @property
    def sampled_tokens_per_s(self) -> float:
        """Tokens sampled in a second, of all rows together."""
        return self.sampled_tokens / max(self.sampled_s, 1e-9)


@dataclass(eq=False)
class _Streams:
    """The rows of the cache: first those of the samples, then those that guide them."""

    rows: list[Row]
    guides: dict[int, int] = field(default_factory=dict)
    """The guiding stream of a row, by its number."""

    @classmethod
    def of(cls, rows: list[Row]) -> "_Streams":
        guided = [i for i, row in enumerate(rows) if row.unguided is not None]
        return cls(rows, {i: len(rows) + n for n, i in enumerate(guided)})

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        guides = [self.rows[i].unguided for i in self.guides]
        return [*(row.prompt for row in self.rows), *(g for g in guides if g is not None)]

    def live(self) -> tuple["_Streams", list[int]]:
        """The streams of rows that go on, and their numbers among these."""
        kept = [i for i, row in enumerate(self.rows) if not row.walk.done]
        guides = [self.guides[i] for i in kept if i in self.guides]
        return _Streams.of([self.rows[i] for i in kept]), kept + guides


@torch.no_grad()
def sample(model: Decoder, rows: Sequence[Row], sampling: Sampling, batch_size: int = 32) -> Speed:
    """Walk each row to its end, `batch_size` rows at a time; returns how fast it was."""
    model.eval()
    speed = Speed()
    for first in range(0, len(rows), batch_size):
        _sample(model, list(rows[first : first + batch_size]), sampling, speed)
    return speed


def _sample(model: Decoder, rows: list[Row], sampling: Sampling, speed: Speed) -> None:
    began = time.perf_counter()
    streams = _Streams.of(rows)
    prompts = list(dict.fromkeys(streams.prompts))
    x_BD, cache = model.prefill(prompts)
    if prompts != streams.prompts:
        number = {prompt: i for i, prompt in enumerate(prompts)}
        row_B = torch.tensor([number[prompt] for prompt in streams.prompts], device=x_BD.device)
        x_BD = x_BD[row_B]
        cache.keep(row_B)
    speed.prefill_tokens += sum(map(len, prompts))
    speed.prefill_s += time.perf_counter() - began
    began = time.perf_counter()
    while True:
        tokens = _tokens(model, x_BD, streams, sampling)
        for row, token in zip(streams.rows, tokens, strict=False):
            if not row.walk.done:
                row.walk.take(token)
                speed.sampled_tokens += 1
        left, numbers = streams.live()
        if not numbers:
            break
        if 2 * len(numbers) <= len(tokens):  # copying the caches pays
            tokens = [tokens[i] for i in numbers]
            cache.keep(torch.tensor(numbers, device=x_BD.device))
            streams = left
        x_BD = model.advance(torch.tensor(tokens, device=x_BD.device), cache)
    speed.sampled_s += time.perf_counter() - began


def _tokens(model: Decoder, x_BD: Tensor, streams: _Streams, sampling: Sampling) -> list[int]:
    """The next token of each stream; padding for rows that have ended."""
    tokens = [PAD] * len(x_BD)
    groups: dict[tuple[range, ...], list[int]] = {}
    for i, row in enumerate(streams.rows):
        if not row.walk.done:
            groups.setdefault(row.walk.allowed(), []).append(i)
    for allowed, numbers in groups.items():
        if len(allowed) == len(allowed[0]) == 1:
            found = [allowed[0].start] * len(numbers)
        else:
            logits_BA = _guided(model, x_BD, allowed, numbers, streams, sampling)
            draws = [streams.rows[i].draws.random() for i in numbers]
            places = pick(logits_BA, draws, sampling)
            found = [_id_at(allowed, place) for place in places]
        for i, token in zip(numbers, found, strict=True):
            tokens[i] = token
            if i in streams.guides:
                tokens[streams.guides[i]] = token
    return tokens


def _guided(
    model: Decoder,
    x_BD: Tensor,
    allowed: tuple[range, ...],
    numbers: list[int],
    streams: _Streams,
    sampling: Sampling,
) -> Tensor:
    """Logits [n, A] on the CPU of the allowed ids of some rows."""
    guides, rows = streams.guides, streams.rows
    guided = [
        (n, guides[i])
        for n, i in enumerate(numbers)
        if i in guides and rows[i].walk.modality in GUIDED
    ]
    wanted = numbers + [guide for _, guide in guided]
    x_nD = x_BD if wanted == list(range(len(x_BD))) else x_BD[wanted]
    logits_nA = torch.cat([model.logits(x_nD, slice(r.start, r.stop)) for r in allowed], 1)
    logits_nA = logits_nA.float().cpu()
    if not guided:
        return logits_nA
    logits_nA, free_gA = logits_nA[: len(numbers)], logits_nA[len(numbers) :]
    at = [n for n, _ in guided]
    if sampling.contrast:
        logits_nA[at] = contrast(logits_nA[at], free_gA, sampling.contrast)
    else:
        logits_nA[at] = free_gA.lerp(logits_nA[at], sampling.guidance)  # l_u + A (l_c - l_u)
    return logits_nA


def contrast(logits_BA: Tensor, free_BA: Tensor, top_k: int) -> Tensor:
    """log p_c - log p_u where p_c is a tenth of its k-th largest or more, else -inf."""
    given_BA = logits_BA.log_softmax(-1)
    least_B1 = given_BA.topk(min(top_k, given_BA.shape[1])).values[:, -1:] + math.log(LIKELY)
    return (given_BA - free_BA.log_softmax(-1)).masked_fill(given_BA < least_B1, -torch.inf)


def pick(logits_BA: Tensor, draws: Sequence[float], sampling: Sampling) -> list[int]:
    """The place of one id a row, by a draw in 0 <= u < 1: where the summed probabilities pass it.

    >>> pick(torch.tensor([[0.0, 0.0, 9.0]] * 2), [1e-5, 0.5], Sampling())
    [0, 2]
    """
    if sampling.temperature == 0:
        return logits_BA.argmax(-1).tolist()
    logits_BA = (logits_BA - logits_BA.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits_BA.shape[1]:
        least_B1 = logits_BA.topk(sampling.top_k).values[:, -1:]
        logits_BA = logits_BA.masked_fill(logits_BA < least_B1, -torch.inf)
    share_BA, order_BA = logits_BA.softmax(-1), None
    if sampling.top_p < 1:
        share_BA, order_BA = share_BA.sort(descending=True, stable=True)
        before_BA = share_BA.double().cumsum(-1) - share_BA
        share_BA = share_BA.masked_fill(before_BA >= sampling.top_p, 0)
    sum_BA = share_BA.double().cumsum(-1)
    draw_B1 = torch.tensor(draws, dtype=torch.float64)[:, None]
    place_B1 = torch.searchsorted(sum_BA / sum_BA[:, -1:], draw_B1, right=True)
    if order_BA is not None:
        place_B1 = order_BA.gather(1, place_B1)
    return place_B1[:, 0].tolist()


def _id_at(allowed: tuple[range, ...], place: int) -> int:
    for ids in allowed:
        if place < len(ids):
            return ids[place]
        place -= len(ids)
    raise IndexError(place)
