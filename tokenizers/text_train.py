"""Trains SentencePiece models that lose nothing, and byte-level BPE, on documents in memory."""

import io
import re
from collections import Counter
from collections.abc import Iterable

import sentencepiece

from plait.tokenizers.base import Progress
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.sampling import choose
from plait.tokenizers.text_common import checked
from plait.tokenizers.text_options import RESERVED, SPACE, FitOptions

LINE = 10_000
"""Characters that a line is cut at; SentencePiece would skip a line of more than 100,000 bytes."""


def choose_documents(
    samples: Iterable[str], options: FitOptions, seed: int, progress: Progress
) -> list[str]:
    """At most `max_characters` of documents, never more in memory; says what it leaves out."""
    most = options.max_characters
    seen = cut = 0

    def read() -> Iterable[str]:
        nonlocal seen, cut
        for sample in samples:
            text = checked(sample)
            seen += len(text)
            cut += len(text) > most
            yield text[:most]

    reading = read()
    documents = choose(
        reading,
        len,
        most,
        seed=seed,
        progress=lambda message, share: progress(message, 0.4 * share),
    )
    if not any(documents):
        raise ConfigError("no text to train on: every document is empty")
    if (used := sum(map(len, documents))) < seen:
        longer = f", {cut} of them cut at {most:,}" if cut else ""
        progress(
            f"note: trained on {used:,} of {seen:,} characters, whole documents chosen at random"
            f"{longer}; --max-characters allows more",
            0.4,
        )
    return documents


def train(documents: list[str], options: FitOptions, progress: Progress) -> bytes:
    """A SentencePiece model, or for `byte_bpe` a `tokenizer.json`; says if it became smaller."""
    wanted = vocab_size = options.vocab_size
    if options.model == "byte_bpe":
        from plait.tokenizers import text_bpe, text_hf

        progress(f"training byte_bpe on {sum(map(len, documents)):,} characters", 0.5)
        model = text_bpe.train(documents, vocab_size)
        vocab_size = text_hf.HuggingFace(model).vocab_size
    else:
        lines = _lines(documents, options)
        progress(f"training {options.model} on {sum(map(len, lines)):,} characters", 0.5)
        try:
            model = _train(lines, options, vocab_size)
        except RuntimeError as error:
            possible = re.search(r"value <= (\d+)", str(error))
            if possible is None:
                raise
            vocab_size = int(possible[1])
            model = _train(lines, options, vocab_size)
    if vocab_size < wanted:
        progress(f"note: {vocab_size} pieces, not {wanted}: there is too little text", 0.7)
    return model


def _lines(documents: list[str], options: FitOptions) -> list[str]:
    """Lines to train on, cut at characters that get no piece of their own.

    At most half of the free pieces go to single characters. A space is always among them: one
    without a piece would be spelled in the bytes of U+2581.
    """
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    most = (options.vocab_size - RESERVED - len(options.user_symbols)) // 2
    cuts = {ord("\n"): "\n", ord(SPACE): "\n"}
    covered = 0
    for place, (character, count) in enumerate(counts.most_common()):
        if place >= most or covered >= options.character_coverage * counts.total():
            cuts[ord(character)] = "\n"
        covered += count
    lines = [line for text in documents for line in text.translate(cuts).split("\n") if line]
    lines = [line[i : i + LINE] for line in lines for i in range(0, len(line), LINE)]
    return [*lines, " "]


def _train(lines: list[str], options: FitOptions, vocab_size: int) -> bytes:
    """One SentencePiece model; the thread count is fixed, for unigram's sums depend on it."""
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=output,
        model_type=options.model,
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=["\n", "\t", *options.user_symbols],
        max_sentence_length=100_000,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=4,
        minloglevel=2,
    )
    return output.getvalue()
