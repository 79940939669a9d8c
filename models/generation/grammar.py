"""Which ids may come where in what is sampled: the grammar of modalities, not the model's whim.

After a modality's begin marker only that tokenizer's ids may come, an image is exactly its grid, a
codec's frame is whole, then comes the end marker. So whatever is sampled can be decoded. `auto`
lets the model choose, in text, which modality begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait.pipeline.vocabulary import EOS, Vocabulary
from plait.tokenizers.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one of the run's tokenizers may write, and its markers."""

    name: str
    """The tokenizer's, in the vocabulary."""
    tokenizer: Tokenizer
    begin: int | None
    """The marker put before the span; None for text."""
    stop: int
    """The id that ends the span: its end marker, or `<eos>`."""
    start: int
    """First global id of the tokenizer."""
    longest: int
    """Most tokens in the span."""

    @classmethod
    def of(
        cls,
        name: str,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        *,
        max_tokens: int,
        seconds: float,
    ) -> "Span":
        """Of at most so many tokens, or seconds of sound; an image is always its grid."""
        rate = tokenizer.tokens_per_s
        longest = max_tokens if rate is None else round(seconds * rate)
        longest = max(longest // tokenizer.width, 1) * tokenizer.width
        end = vocabulary.end(name)
        return cls(
            name=name,
            tokenizer=tokenizer,
            begin=vocabulary.begin(name),
            stop=EOS if end is None else end,
            start=vocabulary.start(name),
            longest=tokenizer.span_length or longest,
        )

    def ids(self, position: int) -> range:
        """Global ids of the tokenizer that may stand at a position of the span."""
        local = self.tokenizer.allowed(position)
        return range(self.start + local.start, self.start + local.stop)

    def may_stop(self, position: int) -> bool:
        """Whether the span may end before a position; at its longest it must."""
        fixed = self.tokenizer.span_length is not None
        return position > 0 and position % self.tokenizer.width == 0 and not fixed


@dataclass(frozen=True, kw_only=True)
class Part:
    """One finished span: local ids of a tokenizer."""

    name: str
    ids: list[int]


class Walk:
    """Where one row stands in its grammar: the parts it has, and what may come next.

    `Walk(span)` is one span, whose begin marker the prompt ends with; `Walk.free` begins in text
    and goes on until `<eos>`, or until no part may begin as `max_tokens` are sampled.
    """

    def __init__(self, span: Span | None, others: Sequence[Span] = (), max_tokens: int = 0) -> None:
        self.parts: list[Part] = []
        self.done = False
        self.taken = 0
        self._span = self._text = span
        self._ids: list[int] = []
        self._begins = {other.begin: other for other in others}
        self._max_tokens = max_tokens

    @classmethod
    def free(cls, spans: Mapping[str, Span], max_tokens: int) -> "Walk":
        """The model chooses what comes, among these spans; text is one without markers."""
        text = next((span for span in spans.values() if span.begin is None), None)
        marked = [span for span in spans.values() if span.begin is not None]
        return cls(text, marked, max_tokens)

    @property
    def modality(self) -> str | None:
        """Of the open span; None where text has no tokenizer."""
        return None if self._span is None else self._span.tokenizer.modality

    def allowed(self) -> tuple[range, ...]:
        """Ranges of global ids that may come next."""
        span, position = self._span, len(self._ids)
        if self._at_text:
            stops = (EOS, *self._begins) if self.taken else tuple(self._begins)
            ids = () if span is None else (span.ids(position),)
            return (*ids, *(range(stop, stop + 1) for stop in stops if stop is not None))
        assert span is not None
        stop = range(span.stop, span.stop + 1)
        if position == span.longest:
            return (stop,)
        return (span.ids(position), stop) if span.may_stop(position) else (span.ids(position),)

    def take(self, token: int) -> None:
        """Go on with an allowed id."""
        self.taken += 1
        begun = self._begins.get(token) if self._at_text else None
        if begun is not None:
            self._close(begun)
        elif token == (EOS if self._span is None else self._span.stop):
            self.done = not self._begins or self._at_text
            self._close(self._text)
        else:
            assert self._span is not None
            self._ids.append(token - self._span.start)
        if self._begins:
            full = self._at_text and self.taken >= self._max_tokens
        else:
            full = self._span is not None and len(self._ids) == self._span.longest
        if full and not self.done:
            self.done = True
            self._close(None)

    @property
    def _at_text(self) -> bool:
        return bool(self._begins) and self._span is self._text

    def _close(self, after: Span | None) -> None:
        """The open span becomes a part, unless it is empty; `after` is open then."""
        if self._span is not None and self._ids:
            self.parts.append(Part(name=self._span.name, ids=self._ids))
        self._span, self._ids = after, []
