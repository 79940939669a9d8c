"""Trains byte-level BPE with the tokenizers library: a `tokenizer.json` that loses nothing.

Every byte has a token, so no text is lost, and tiktoken can encode it. Trains at some 1 MB a
CPU-second. Words are cut as by cl100k, but marks stay in words (a vowel sign does not cut a Hindi
word) and digits stand alone. The library counts words in as many threads as
TOKENIZERS_PARALLELISM allows; the result does not depend on it.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from plait.tokenizers.text_merges import PATTERNS

PIECE = 100_000
"""Characters of a text that is handed over at once."""


def train(documents: Sequence[str], vocab_size: int, pattern: str = PATTERNS["plait"]) -> bytes:
    """The `tokenizer.json` of a vocabulary of at most `vocab_size` tokens, 256 of them bytes."""
    library = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    pieces = (text[i : i + PIECE] for text in documents for i in range(0, len(text), PIECE))
    library.train_from_iterator(pieces, trainer)
    return library.to_str().encode()
