"""`plait fit text --from FILE`: a model made elsewhere, recognised by what the file holds."""

import json
from pathlib import Path

from plait.tokenizers import text
from plait.tokenizers.base import Progress, Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.text_common import PROBE
from plait.tokenizers.text_options import FitOptions

LARGEST = 1 << 28
"""Bytes of the largest file that is read."""


def import_model(options: FitOptions, progress: Progress) -> Tokenizer:
    """The tokenizer of `source_model`; ConfigError, which names the file, if it cannot be had."""
    path = Path(options.source_model or "")
    try:
        tokenizer = _read(path, options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not getattr(tokenizer, "lossless", True):
        back = tokenizer.decode(tokenizer.encode_batch([PROBE])[0])
        if not options.allow_lossy:
            raise ConfigError(
                f"{path}: this model changes text: {PROBE!a} comes back as {back!a}; --allow-lossy "
                "takes it as it is"
            )
        progress(f"note: this model changes text: {PROBE!a} comes back as {back!a}", 0.8)
    engine, reason = getattr(tokenizer, "engine", ""), getattr(tokenizer, "reason", "")
    if engine == "tokenizers":
        progress(f"note: encoded by tokenizers, not by tiktoken, as {reason}", 0.8)
    return tokenizer


def _read(path: Path, options: FitOptions) -> Tokenizer:
    if path.is_dir():
        path = _only_model(path)
    if not path.is_file():
        raise ConfigError("no such file")
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path.stat().st_size:,} bytes: more than a tokenizer has")
    data = path.read_bytes()
    if path.suffix == ".tiktoken":
        return _tiktoken(data, options)
    if options.pattern or options.special_tokens:
        raise ConfigError("--pattern and --special-tokens are for a *.tiktoken file alone")
    if data.lstrip()[:1] == b"{":
        return _json(data)
    return _sentencepiece(data, options)


def _only_model(folder: Path) -> Path:
    """The model file of a folder as Hugging Face has them."""
    for name in ("tokenizer.json", "tekken.json", "tokenizer.model", text.MODEL_FILE):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError("no tokenizer.json, tekken.json or tokenizer.model in this folder")


def _json(data: bytes) -> Tokenizer:
    try:
        keys = json.loads(data).keys()
    except ValueError as error:
        raise ConfigError(f"damaged JSON: {error}") from None
    if {"vocab", "config"} <= keys:
        from plait.tokenizers.text_tiktoken import from_tekken

        return from_tekken(data)
    if "model" not in keys:
        raise ConfigError(f"neither a tokenizer.json nor a tekken.json: keys {sorted(keys)}")
    from plait.tokenizers.text_hf import HuggingFace

    return HuggingFace(data)


def _tiktoken(data: bytes, options: FitOptions) -> Tokenizer:
    from plait.tokenizers.text_merges import PATTERNS
    from plait.tokenizers.text_tiktoken import Tiktoken, read_ranks, special_ids

    if not options.pattern:
        known = ", ".join(PATTERNS)
        raise ConfigError(f"--pattern is missing: the file does not hold it; a name of {known}")
    ranks = read_ranks(data)
    pattern = PATTERNS.get(options.pattern, options.pattern)
    return Tiktoken(ranks, pattern, special_ids(options.special_tokens, ranks))


def _sentencepiece(data: bytes, options: FitOptions) -> Tokenizer:
    try:
        return text.Text(data)
    except ConfigError as error:
        if "changes text" not in str(error):
            raise
        return text.Text(data, lossy=True)
