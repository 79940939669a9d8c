"""A text tokenizer as a `tokenizer.json` of Hugging Face's library, with equal ids or not at all.

A byte-level BPE is such a file already. tiktoken's ranks become merges, and `find_plan` proves
that these lead back to the same ranks. SentencePiece pieces are written with real spaces in place
of U+2581, so that no normaliser is needed and a literal U+2581 falls to its bytes as here; user
symbols become added tokens. What cannot be equal is refused with a reason, and the result has to
give equal ids, and the same text back, on probes and on every piece.

Unigram cannot be equal: SentencePiece adds scores in float32 and the library in float64, so paths
of the same score ("--" + "-" and "-" + "--") are chosen by rounding (23 of 3,245 documents differed
somewhere). It is written only where that is asked for (`near`).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.sentencepiece_file import BYTE, NORMAL, UNKNOWN, USER, Model, read_model
from plait.tokenizers.text import Text
from plait.tokenizers.text_hf import PROBES, HuggingFace
from plait.tokenizers.text_merges import find_plan, to_token
from plait.tokenizers.text_options import SPACE
from plait.tokenizers.text_tiktoken import Tiktoken

TEXTS = (*PROBES, "\u2581 a\u2581b", "<0x41><unk></s> <0x0A>", "\n\n\t\t \n", "")


def export(tokenizer: Tokenizer, path: str | Path, near: bool = False) -> None:
    """Write the file; ConfigError, with the reason, if ids would not be equal."""
    Path(path).write_bytes(to_json(tokenizer, near))


def to_json(tokenizer: Tokenizer, near: bool = False) -> bytes:
    """The `tokenizer.json`; ConfigError, with the reason, if ids would not be equal.

    `near` takes a unigram model all the same, if the same text comes back.
    """
    if isinstance(tokenizer, HuggingFace):
        return tokenizer.files()["tokenizer.json"]
    if isinstance(tokenizer, Tiktoken):
        spec = _from_ranks(tokenizer)
    elif isinstance(tokenizer, Text):
        model = read_model(tokenizer.files()["sentencepiece.model"])
        if model.kind == "unigram" and not near:
            raise ConfigError(
                "no tokenizer.json: the library adds a unigram model's scores in another precision "
                "than SentencePiece, so some documents would get other ids where two ways to cut "
                "them score the same; --export-near writes it all the same"
            )
        spec = _from_pieces(model, tokenizer)
    else:
        raise ConfigError(f"{type(tokenizer).__name__}: no text tokenizer, so no tokenizer.json")
    data = json.dumps(spec, ensure_ascii=False).encode()
    _verify(tokenizer, data, near)
    return data


def _verify(tokenizer: Text | Tiktoken, data: bytes, near: bool) -> None:
    library = HuggingFace(data, engine="tokenizers")
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    texts = [*TEXTS, *pieces, *("".join(pieces[i : i + 50]) for i in range(0, len(pieces), 50))]
    ours, theirs = tokenizer.encode_batch(texts), library.encode_batch(texts)
    for text, mine, other in zip(texts, ours, theirs, strict=True):
        if not near and not np.array_equal(mine.ids, other.ids):
            raise ConfigError(
                f"no tokenizer.json: it would give other ids, as for {text[:60]!a}: "
                f"{other.ids[:9].tolist()}, not {mine.ids[:9].tolist()}"
            )
        if library.decode(other) != tokenizer.decode(mine):
            raise ConfigError(f"no tokenizer.json: it would give other text back for {text[:60]!a}")


def _spec(model: dict, **parts: object) -> dict[str, object]:
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", **empty, "added_tokens": [], **parts, "model": model}


def _added(content: str, index: int, special: bool) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": special}


def _bpe(vocab: Mapping[str, int], merges: list[tuple[str, str]], **more: object) -> dict:
    return {
        "type": "BPE",
        **dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **more,
        "vocab": dict(vocab),
        "merges": [list(merge) for merge in merges],
    }


def _from_ranks(tokenizer: Tiktoken) -> dict[str, object]:
    tokens = tokenizer.tokens
    merges = []
    for token in sorted((t for t in tokens if len(t) > 1), key=tokens.__getitem__):
        parts = merge_parts(token, tokens)
        if len(parts) != 2:
            raise ConfigError(
                f"no tokenizer.json: no merge leads to the token {token!r}, which tiktoken takes "
                "where it is a whole word"
            )
        merges.append((to_token(parts[0]), to_token(parts[1])))
    vocab = {to_token(token): index for token, index in tokens.items()} | tokenizer.specials
    if len(vocab) != len(tokens) + len(tokenizer.specials):
        raise ConfigError("no tokenizer.json: a special token is spelled like another token")
    pattern = {"Regex": tokenizer.pattern}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    spec = _spec(
        _bpe(vocab, merges),
        added_tokens=[_added(name, i, special=True) for name, i in tokenizer.specials.items()],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, {**level, "use_regex": False}]},
        decoder={**level, "use_regex": True},
    )
    try:
        plan = find_plan(spec)
    except ValueError as error:
        raise ConfigError(f"no tokenizer.json: {error}") from None
    found = {token: int(plan.ids[rank]) for token, rank in plan.ranks.items()}
    order = sorted((t for t in found if len(t) > 1), key=plan.ranks.__getitem__)
    if found != tokens or order != sorted(
        (t for t in tokens if len(t) > 1), key=tokens.__getitem__
    ):
        raise ConfigError("no tokenizer.json: its merges do not lead to the same ranks")
    return spec


def merge_parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What merging the bytes of a token gives with the tokens of lower rank: two parts or more."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], 1 << 62) for i in range(len(parts) - 1)]
        best = min(pairs)
        if best >= ranks[token]:
            break
        i = pairs.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _from_pieces(model: Model, tokenizer: Text) -> dict[str, object]:
    if not tokenizer.lossless or model.changes_text:
        raise ConfigError(
            "no tokenizer.json: this model changes text, and the library's normalisers are not "
            "proven to do the same"
        )
    kinds = [piece.kind for piece in model.pieces]
    if kinds.count(UNKNOWN) != 1 or kinds.count(BYTE) != 256:
        raise ConfigError("no tokenizer.json: not one unknown piece and 256 byte pieces")
    names = [piece.text.replace(SPACE, " ") for piece in model.pieces]
    normal = {name: i for i, name in enumerate(names) if kinds[i] == NORMAL}
    if model.kind == "bpe":
        merges = _merges({name: model.pieces[i].score for name, i in normal.items()})
        vocab = {name: i for i, name in enumerate(names)}
        unknown = names[kinds.index(UNKNOWN)]
        library = _bpe(vocab, merges, unk_token=unknown, byte_fallback=True)
        cut = None
    elif model.kind == "unigram":
        library, cut = _unigram(model, names, normal)
    else:
        raise ConfigError(f"no tokenizer.json: a SentencePiece model of kind {model.kind}")
    added = [
        _added(name, i, special=kinds[i] != USER)
        for i, name in enumerate(names)
        if kinds[i] not in (NORMAL, BYTE, UNKNOWN)
    ]
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return _spec(library, added_tokens=added, pre_tokenizer=cut, decoder=decoder)


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together of two, the best piece first."""
    found = []
    for name in sorted((n for n in scores if len(n) > 1), key=lambda n: -scores[n]):
        cuts = ((name[:i], name[i:]) for i in range(1, len(name)))
        found += [(left, right) for left, right in cuts if left in scores and right in scores]
    return found


def _unigram(model: Model, names: list[str], normal: Mapping[str, int]) -> tuple[dict, dict | None]:
    """The model, and a pre-tokenizer that cuts out characters without a piece.

    The library looks for byte pieces and the unknown piece in text, too. Their score keeps them out
    of every path of characters that have pieces, and the cut keeps them from the others.
    """
    known = {name for name in normal if len(name) == 1}
    if missing := {c for name in normal for c in name} - known:
        raise ConfigError(f"no tokenizer.json: {min(missing)!r} is in pieces, and is none itself")
    lowest = 100 * min(min(model.pieces[i].score for i in normal.values()), -1.0)
    vocab = [
        [name, model.pieces[i].score if name in normal and normal[name] == i else lowest]
        for i, name in enumerate(names)
    ]
    unknown = [piece.kind for piece in model.pieces].index(UNKNOWN)
    library = {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": True}
    characters = "".join(rf"\x{{{ord(c):X}}}" for c in sorted(known))
    pattern = {"Regex": f"[^{characters}]"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return library, split
