"""Byte-level BPE of a `tokenizer.json` as ranks of bytes, where both provably give the same ids.

Hugging Face's tokenizers merges a listed pair, the earliest in the list first; tiktoken merges any
two neighbours whose bytes are a token, the lowest rank first, and is 4 to 8 times faster. With
ranks in the order of the list they agree if every token comes back whole from merging its own
bytes (tested here, token by token). For take neighbours l, r in the middle of a text, l + r being a
token t. Merges never cross the border of what is a token at that moment, so merging the bytes of
t alone passes through l, r as well; as it ends in t, the pair that it merges last is l, r, which
is therefore listed, at t's place. So both see the same candidates in the same order.

The pattern that cuts text into words runs on two regular expression engines. `splits_agree` tries
14,000 characters in six surroundings; `benchmarks/text_tokenizer.py --all-characters` tries all
1.1 million, for the patterns below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import tiktoken
from tokenizers import Regex, models, pre_tokenizers

PATTERNS = {
    "gpt2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "plait": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Patterns by name; `plait` is cl100k's with marks kept in words and digits one by one."""
SURROUNDINGS = ("a{0}a", "1{0}1", " {0}{0} ", "'{0}", ".{0}.", "A{0}b\n")


class Unfit(ValueError):  # noqa: N818
    """Why a model is left to the tokenizers library."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What tiktoken needs for the same ids."""

    ranks: dict[bytes, int]
    """Tokens by their bytes, numbered in the order of merging."""
    ids: np.ndarray
    """Int32: the id of each rank."""
    pattern: str
    """The regular expression that cuts text into words."""


def alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = alphabet()
CHARACTERS = {byte: character for character, byte in BYTES.items()}


def to_bytes(token: str) -> bytes | None:
    """The bytes that a token of a byte-level vocabulary stands for; None if it is none."""
    values = [BYTES.get(character, -1) for character in token]
    return None if -1 in values or not values else bytes(values)


def to_token(data: bytes) -> str:
    """The inverse of `to_bytes`."""
    return "".join([CHARACTERS[byte] for byte in data])


def find_plan(spec: Mapping) -> Plan:
    """The plan for a parsed `tokenizer.json`; raises Unfit with the reason if there is none."""
    model = spec["model"]
    if model.get("type") != "BPE":
        raise Unfit(f"its model is {model.get('type')}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise Unfit(f"its model has a {name}")
    pattern = find_pattern(spec.get("pre_tokenizer"))
    vocab: dict[str, int] = model["vocab"]
    if not all(character in vocab for character in BYTES):
        raise Unfit("its vocabulary lacks some of the 256 bytes")
    merges = [_pair(merge) for merge in model["merges"]]
    tokens = [*sorted(BYTES, key=vocab.__getitem__), *_in_order(merges)]
    if model.get("ignore_merges"):
        known = {*tokens, *(added["content"] for added in spec.get("added_tokens") or [])}
        if not all(token in known or len(token) == 1 for token in vocab):
            raise Unfit("it takes words that no merge leads to")
    plain = models.BPE(vocab=vocab, merges=merges)
    for token in tokens:
        if len(plain.tokenize(token)) != 1:
            raise Unfit(f"its merges do not lead to the token {token!r}")
    ranks = {to_bytes(token) or b"": rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens) or b"" in ranks:
        raise Unfit("it merges characters that stand for no byte")
    if not splits_agree(pattern):
        raise Unfit("the engines cut text differently by its pattern")
    return Plan(ranks=ranks, ids=np.array([vocab[t] for t in tokens], np.int32), pattern=pattern)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _in_order(merges: list[tuple[str, str]]) -> list[str]:
    """Merged tokens in the order of their merges; Unfit if those of a token are not in a row."""
    tokens: dict[str, None] = {}
    last = ""
    for left, right in merges:
        token = left + right
        if token != last and token in tokens:
            raise Unfit(f"merges of the token {token!r} stand in several places")
        tokens[token] = None
        last = token
    return list(tokens)


def find_pattern(pre_tokenizer: Mapping | None) -> str:
    """The one regular expression of a byte-level pre-tokenizer; raises Unfit if it is another."""
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = list(steps[0].get("pretokenizers", []))
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise Unfit("its text is not cut into words of bytes, or gets a space in front")
    if not before and last.get("use_regex", True):
        return PATTERNS["gpt2"]
    split = before[0] if len(before) == 1 and not last.get("use_regex", True) else {}
    pattern = split.get("pattern", {}).get("Regex")
    isolated = split.get("type") == "Split" and split.get("behavior") == "Isolated"
    if not isolated or split.get("invert") or not pattern:
        raise Unfit("its text is cut in several steps")
    return pattern


@lru_cache(maxsize=16)
def splits_agree(pattern: str, start: int = 0, stop: int = 0x110000, sample: bool = True) -> bool:
    """Whether both engines cut text alike: by 14,000 characters, or all from `start` to `stop`."""
    points = range(start, stop)
    if sample:
        points = [*range(start, min(stop, 0x3000)), *range(0x3000, stop, 499)]
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return all(
            _agree(pattern, split, "\n".join(around.format(c) for c in characters[i : i + 4096]))
            for around in SURROUNDINGS
            for i in range(0, len(characters), 4096)
        )
    except Exception:  # either library refuses the pattern, by an exception of its own
        return False


def _agree(pattern: str, split: pre_tokenizers.PreTokenizer, text: str) -> bool:
    """Whether tiktoken finds the same words: each is a token, and so is each pair of them."""
    words = [word.encode() for word, _ in split.pre_tokenize_str(text)]
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in (*words, *(left + right for left, right in pairwise(words))):
        ranks.setdefault(word, len(ranks))
    numbers = tiktoken.Encoding(
        "probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    ).encode_ordinary(text)
    return numbers == [ranks[word] for word in words]
