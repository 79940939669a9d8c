"""Spans of stand-in tokenizers for the small vocabulary of conftest: text, pictures, speech."""

from plait.models.generation.grammar import Span
from plait.tokenizers.base import Tokenizer

GRID, CODEBOOKS, CODES = 6, 2, 12


class Stand(Tokenizer):
    """A tokenizer with a grammar and nothing else."""

    def __init__(self, modality: str, vocab_size: int) -> None:
        self.modality, self.vocab_size = modality, vocab_size
        self.span_length = GRID if modality == "image" else None
        self.width = {"image": 3, "speech": CODEBOOKS}.get(modality, 1)
        self.tokens_per_s = 4.0 if modality == "speech" else None

    def allowed(self, position: int) -> range:
        if self.modality != "speech":
            return range(self.vocab_size)
        first = position % CODEBOOKS * CODES
        return range(first, first + CODES)

    def encode_batch(self, samples): ...
    def decode(self, encoded): ...
    def config(self): ...
    def files(self): ...

    @classmethod
    def from_files(cls, config, files): ...


def spans(vocabulary, max_tokens: int = 9, seconds: float = 2.0) -> dict[str, Span]:
    """The spans by name; a sound of 2 s has 8 tokens."""
    return {
        info.name: Span.of(
            info.name,
            Stand(info.modality, info.vocab_size),
            vocabulary,
            max_tokens=max_tokens,
            seconds=seconds,
        )
        for info in vocabulary.tokenizers
    }
