"""Words of a text with very long white space, which the regular expression engines give up on.

tiktoken panics at some million white-space characters in a row, tokenizers at some five million. A
run of one character is therefore shortened, the text cut into words by the tokenizers library, and
the run put back into the word that it stands in. For the patterns known here that is exact: they
have white space only under `*`, `+`, `?` and one character of look-ahead, so a run of 1,000 is cut
where one of 10 million is, at most one character from its ends.
"""

import re

from tokenizers import Regex, pre_tokenizers

from plait.tokenizers.errors import SampleError
from plait.tokenizers.text_common import panics
from plait.tokenizers.text_merges import PATTERNS, splits_agree

LONGEST = 100_000
"""White-space characters in a row that tiktoken is trusted with; 700,000 were seen to work."""
KEPT = 1000
"""Characters that a longer run of one white-space character is shortened to."""


def has_long_space(text: str) -> bool:
    """Whether more than LONGEST white-space characters stand in a row."""
    if len(text) <= LONGEST or not any(map(str.isspace, text[LONGEST - 1 :: LONGEST])):
        return False
    return re.search(rf"\s{{{LONGEST}}}", text) is not None


def words_of(text: str, pattern: str) -> list[str]:
    """The words that a pattern cuts text into; SampleError if the white space is too much."""
    if pattern not in PATTERNS.values() or not splits_agree(pattern):
        raise SampleError(
            f"more than {LONGEST:,} white-space characters in a row: tiktoken cannot encode them, "
            "and this pattern is none that is known to be cut alike elsewhere; shorten them"
        )
    short, runs = _shortened(text)
    with panics():
        pairs = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(short)
    words = [word for word, _ in pairs]
    place = 0
    for middle, run in runs:
        while pairs[place][1][1] <= middle:
            place += 1
        start, stop = pairs[place][1]
        if start > middle - KEPT // 2 + 1 or stop < middle + KEPT // 2 - 1:
            raise SampleError(f"{len(run) + KEPT:,} white-space characters in a row; shorten them")
        at = middle - start + len(words[place]) - (stop - start)
        words[place] = words[place][:at] + run + words[place][at:]
    return words


def _shortened(text: str) -> tuple[str, list[tuple[int, str]]]:
    """Text without long runs of one character; the middle of each and what is missing there."""
    parts: list[str] = []
    runs: list[tuple[int, str]] = []
    last = length = 0
    for match in re.finditer(rf"(\s)\1{{{KEPT},}}", text):
        parts += [text[last : match.start()], match[1] * KEPT]
        length += match.start() - last + KEPT
        runs.append((length - KEPT // 2, match[1] * (len(match[0]) - KEPT)))
        last = match.end()
    return "".join([*parts, text[last:]]), runs
