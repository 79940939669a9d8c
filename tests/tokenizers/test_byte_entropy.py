"""The count model against its formula, byte by byte, and what a damaged file gives."""

from collections import Counter

import numpy as np
import pytest

from plait.tokenizers import byte_entropy
from plait.tokenizers.byte_entropy import UNIT, ContextEntropies, count
from plait.tokenizers.checks import WEIGHTS_FILE, weights_from_files, weights_to_bytes
from plait.tokenizers.errors import ConfigError


def plain_model(documents: list[bytes]):
    """A function from the bytes before to the distribution [256], straight from the formula."""
    after = [Counter() for _ in range(4)]
    for document in documents:
        for i in range(len(document)):
            for order in range(min(i, 3) + 1):
                after[order][document[i - order : i], document[i]] += 1

    def distribution(context: bytes) -> np.ndarray:
        below = distribution(context[1:]) if context else np.full(256, 1 / 256)
        seen = np.array([after[len(context)][context, byte] for byte in range(256)])
        different = np.count_nonzero(seen)
        if not different:
            return below
        return (seen + different * below) / (seen.sum() + different)

    return distribution


def placed(documents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    firsts = np.cumsum([0, *map(len, documents[:-1])], dtype=np.int64)
    return np.frombuffer(b"".join(documents), np.uint8), firsts[: len(documents)]


@pytest.mark.parametrize("seed", range(3))
def test_bits_and_entropies_equal_the_formula(seed):
    rng = np.random.default_rng(seed)
    letters = np.array([97, 98, 255], np.uint8)[: 2 + seed % 2]
    made = [rng.choice(letters, size).tobytes() for size in (0, 1, 2, 3, 40, 0, 7, 4, 30)]
    learned, documents = made[: 2 + 2 * seed], made[3:]
    model, plain = count(learned), plain_model(learned)
    data, firsts = placed(documents)
    bits, entropies = model.bits(data, firsts), model.entropies().stream().push(data, firsts)
    contexts = [x[max(i - 3, 0) : i] for x in documents for i in range(len(x))]
    for i, (byte, context) in enumerate(zip(data, contexts, strict=True)):
        p = plain(context)
        assert p.sum() == pytest.approx(1)
        assert bits[i] == pytest.approx(-np.log2(p[byte]))
        entropy = -(p * np.log2(p)).sum()
        assert entropies[i] == pytest.approx(min(entropy, 65535 * UNIT), abs=0.51 * UNIT)


def test_entropy_falls_where_bytes_repeat():
    source = count([b"the cat and the dog and the cow " * 9]).entropies()
    text = np.frombuffer(b"the cat", np.uint8)
    entropies = source.stream().push(text, np.zeros(1, np.int64))
    assert entropies[3] < 0.5 and entropies[4] > 0.9  # after "the", and after "he "


def test_chunks_change_nothing(monkeypatch):
    """Counts come in parts; the parts' size shows only where a long document is cut."""
    documents = [bytes(x) for x in np.random.default_rng(0).integers(97, 101, (40, 50), np.uint8)]
    whole = count(documents).entropies().files()
    monkeypatch.setattr(byte_entropy, "CHUNK", 120)
    assert count(documents).entropies().files() == whole
    monkeypatch.setattr(byte_entropy, "CHUNK", 30)
    assert [len(data) for data, _ in byte_entropy.chunks([bytes(70), b"", b"a" * 25])] == [
        30,
        30,
        35,
    ]


def test_size_is_bounded(monkeypatch):
    """The rarest grams are forgotten while counting, then the rarest contexts."""
    documents = [bytes(x) for x in np.random.default_rng(1).integers(97, 103, (60, 50), np.uint8)]
    monkeypatch.setattr(byte_entropy, "MOST_CONTEXTS", 10)
    model = count([*documents, b"abcabcabcabc" * 30])
    source = model.entropies()
    assert len(source.contexts) == 10
    assert {int.from_bytes(x, "big") for x in (b"abc", b"bca", b"cab")} <= set(source.contexts)
    monkeypatch.setattr(byte_entropy, "MOST_GRAMS", 50)
    assert len(count(documents).grams) <= 50


def test_damaged_files():
    source = count([b"abcdef"]).entropies()
    files = source.files()
    arrays = weights_from_files(files, dict.fromkeys(byte_entropy.ARRAYS, 1))
    assert ContextEntropies.from_files(files).files() == files
    assert ContextEntropies.from_files(files).bits(*placed([b"a"])) is None
    damage = {
        "rise": {**arrays, "contexts": arrays["contexts"].flip(0)},
        "order1 should be": {**arrays, "order1": arrays["order0"].clone()},
        r"order3 should be uint16 \[3\]": {**arrays, "order3": arrays["order0"].clone()},
        "does not fit": {"order0": arrays["order0"]},
    }
    for message, tensors in damage.items():
        with pytest.raises(ConfigError, match=message):
            ContextEntropies.from_files({WEIGHTS_FILE: weights_to_bytes(tensors)})
    outside = {**arrays, "contexts": arrays["contexts"] + (1 << 24)}
    with pytest.raises(ConfigError, match="rise within"):
        ContextEntropies.from_files({WEIGHTS_FILE: weights_to_bytes(outside)})
    with pytest.raises(ConfigError, match="damaged"):
        ContextEntropies.from_files({WEIGHTS_FILE: files[WEIGHTS_FILE][:-9]})
