"""Text: SentencePiece, set up so that every Unicode string comes back exactly.

Stock settings squeeze spaces and turn newlines and tabs into spaces, which destroys code (2 of 500
documents came back exact). Here nothing is normalised, newline and tab are pieces of their own and
what the vocabulary lacks falls back to bytes; a literal U+2581, which SentencePiece itself uses for
a space, is written as its three byte pieces. Byte pair encoding trains at some 5 MB a CPU-second
and encodes a million tokens a CPU-second. A model made elsewhere that changes text can be had too,
as it is (`lossy`): its ids are then what SentencePiece gives for the whole string.

Control pieces ("</s>") are never found in raw text. User symbols are, by SentencePiece's design:
models that keep their markers as user symbols let a document forge them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
import sentencepiece

from plait.tokenizers.base import Encoded, Progress, Tokenizer, ignore
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.sentencepiece_arrays import batch_encoder
from plait.tokenizers.text_common import PROBE, checked, encoded
from plait.tokenizers.text_options import SPACE, FitOptions
from plait.tokenizers.text_train import choose_documents, train

MODEL_FILE = "sentencepiece.model"


class Text(Tokenizer):
    """A SentencePiece model that loses nothing; or any, with `lossy`.

    >>> tokenizer = fit(["a rose is a rose"], FitOptions(vocab_size=300))
    >>> tokenizer.decode(tokenizer.encode_batch(["a \u2581 rose\\r\\n"])[0])
    'a \u2581 rose\\r\\n'
    """

    modality = "text"

    def __init__(self, model: bytes, lossy: bool = False) -> None:
        self._model = model
        self._lossy = lossy
        try:
            self._pieces = sentencepiece.SentencePieceProcessor()
            self._pieces.LoadFromSerializedProto(model)
            self.vocab_size = self._pieces.vocab_size()
            self._encode = batch_encoder(self._pieces)
        except RuntimeError as error:
            raise ConfigError(f"{MODEL_FILE}: not a SentencePiece model, or damaged") from error
        self._bytes = [_piece_bytes(self._pieces, i) for i in range(self.vocab_size)]
        spelled = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space = np.array(spelled, np.int32)
        self.lossless = not lossy and self.decode(self.encode_batch([PROBE])[0]) == PROBE
        if not self.lossless and not lossy:
            raise ConfigError(
                f"{MODEL_FILE}: this model changes text (it normalises, adds a space in front or "
                "lacks byte pieces); make one with `plait fit text`, or take it as it is with "
                "`plait fit text --from FILE --allow-lossy`"
            )

    def encode_batch(self, samples: Sequence[str], num_threads: int = 1) -> list[Encoded]:
        """Ids of each string; SampleError if one is no valid Unicode (a lone surrogate)."""
        if not self._lossy and any(SPACE in sample for sample in samples):
            parts = [sample.split(SPACE) for sample in samples]
            ids = iter(self._ids([part for sample in parts for part in sample], num_threads))
            return encoded([self._joined([next(ids) for _ in sample]) for sample in parts])
        return encoded(self._ids(list(samples), num_threads))

    def _ids(self, texts: list[str], num_threads: int) -> list[np.ndarray]:
        try:
            return self._encode(texts, num_threads)
        except TypeError:
            for text in texts:
                checked(text)
            raise

    def _joined(self, parts: list[np.ndarray]) -> np.ndarray:
        if len(parts) == 1:
            return parts[0]
        pieces = [piece for part in parts for piece in (self._space, part)]
        return np.concatenate(pieces[1:])

    def decode(self, encoded: Encoded) -> str:
        """The string; bytes that are not UTF-8, as a model may produce, become U+FFFD."""
        if self._lossy:
            return self._pieces.decode(encoded.ids.tolist())
        return b"".join([self._bytes[i] for i in encoded.ids]).decode("utf-8", errors="replace")

    def piece(self, index: int) -> str:
        """A piece as one reads it, for tables: U+2581 is a space and `<0x0A>` a byte."""
        return self._pieces.id_to_piece(index)

    def config(self) -> dict[str, object]:
        """Nothing, for the model says it all; or that it may change text."""
        return {"lossy": True} if self._lossy else {}

    def files(self) -> dict[str, bytes]:
        """The SentencePiece model."""
        return {MODEL_FILE: self._model}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if the model is missing, damaged, or lossy and not said to be."""
        if MODEL_FILE not in files:
            raise ConfigError(f"text tokenizer: {MODEL_FILE} is missing")
        lossy = config.get("lossy", False)
        if not isinstance(lossy, bool):
            raise ConfigError(f"config.json: lossy is {lossy!r}, and should be true or false")
        return cls(files[MODEL_FILE], lossy)


def fit(
    samples: Iterable[str], options: FitOptions, *, seed: int = 0, progress: Progress = ignore
) -> Tokenizer:
    """Train on documents, in memory; or read the model that `--from` names, and train nothing."""
    if options.source_model is not None:
        from plait.tokenizers.text_import import import_model

        tokenizer = import_model(options, progress)
    else:
        documents = choose_documents(samples, options, seed, progress)
        model = train(documents, options, progress)
        if options.model == "byte_bpe":
            from plait.tokenizers.text_hf import HuggingFace

            tokenizer = HuggingFace(model)
        else:
            tokenizer = Text(model)
    if options.export is not None:
        from plait.tokenizers.text_export import export

        progress(f"writing {options.export}", 0.9)
        export(tokenizer, options.export, options.export_near)
    return tokenizer


def evaluate(tokenizer: Tokenizer, held_out: Iterable[str]) -> dict[str, float]:
    """Bytes per token, share of documents that come back exactly, and use of the vocabulary."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    documents = exact = size = 0
    for text in held_out:
        encoded = tokenizer.encode_batch([text])[0]
        counts += np.bincount(encoded.ids, minlength=len(counts))
        documents += 1
        exact += tokenizer.decode(encoded) == text
        size += len(text.encode())
    tokens = int(counts.sum())
    share = counts[counts > 0] / max(tokens, 1)
    entropy = float(-(share * np.log2(share)).sum())
    return {
        "documents": documents,
        "tokens": tokens,
        "bytes_per_token": size / tokens if tokens else float("nan"),
        "exact": exact / documents if documents else float("nan"),
        "codes_used": int((counts > 0).sum()),
        "perplexity": 2**entropy,
        "bits_per_token": float(np.log2(tokenizer.vocab_size)),
    }


def _piece_bytes(pieces: sentencepiece.SentencePieceProcessor, index: int) -> bytes:
    if pieces.is_byte(index):
        return bytes([int(pieces.id_to_piece(index)[3:5], 16)])
    if pieces.is_unknown(index):
        return "\ufffd".encode()
    if pieces.is_control(index):
        return b""
    return pieces.id_to_piece(index).replace(SPACE, " ").encode()
