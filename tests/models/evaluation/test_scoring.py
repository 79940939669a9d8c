import numpy as np
import pytest
import torch

from plait.models.evaluation.scoring import (
    NOWHERE,
    PLAIN,
    Piece,
    SpanIds,
    nats_of,
    tokens_of,
    windows,
)
from plait.pipeline.vocabulary import BOS, EOS, TokenizerInfo, Vocabulary
from plait.tokenizers.errors import ConfigError

KEPT = Vocabulary(
    tuple(
        TokenizerInfo(
            name=name, modality=name, vocab_size=32, fingerprint=name, splittable=name != "image"
        )
        for name in ("text", "image", "speech")
    )
)


def document(*spans: tuple[str, int, int], seed: int = 0, vocabulary: Vocabulary = KEPT):
    draws = np.random.default_rng(seed)
    parts = [
        SpanIds(name=name, ids=vocabulary.start(name) + draws.integers(24, size=n), width=width)
        for name, n, width in spans
    ]
    return tokens_of(parts, vocabulary)


def test_a_document_has_its_markers():
    tokens = document(("text", 2, 1), ("image", 4, 2), ("speech", 6, 2))
    image, speech = (KEPT.specials.index(name) for name in ("<image>", "<speech>"))
    assert tokens.ids[[0, 3, 8, 9, 16, -1]].tolist() == [
        BOS,
        image,
        image + 1,
        speech,
        speech + 1,
        EOS,
    ]
    assert tokens.spans.tolist() == [-1, 0, 0, -1, 1, 1, 1, 1, -1, -1, *[2] * 6, -1, -1]
    inside = [NOWHERE, NOWHERE, speech, NOWHERE, speech, NOWHERE]
    kept = [NOWHERE] * 4
    assert tokens.heads.tolist() == [
        PLAIN,
        PLAIN,
        PLAIN,
        PLAIN,
        *kept,
        NOWHERE,
        PLAIN,
        *inside,
        NOWHERE,
        NOWHERE,
    ]


@pytest.mark.parametrize("seed", range(20))
def test_windows_predict_every_token_once(seed):
    draws = np.random.default_rng(seed)
    kinds = [
        ("text", int(draws.integers(1, 90)), 1),
        ("image", 20, 4),
        ("speech", 2 * int(draws.integers(1, 40)), 2),
    ]
    tokens = document(*(kinds[i] for i in draws.integers(3, size=6)), seed=seed)
    pieces = list(windows(tokens, 32))
    counted = np.concatenate([piece.ids[piece.first :] for piece in pieces])
    assert counted.tolist() == tokens.ids[1:].tolist()
    assert all(len(piece.ids) <= 32 and piece.first >= 1 for piece in pieces)
    image, modality = KEPT.specials.index("<image>"), KEPT.modality_of
    for piece in pieces[1:]:
        assert modality(piece.ids[:1])[0] == 0, "begins with text or a marker"
        begins = np.flatnonzero(piece.ids == image)
        for place in np.flatnonzero(modality(piece.ids) == 1):
            assert (begins < place).any(), "no part of a picture without its beginning"
    texts = document(("text", 200, 1))
    context = [piece.first for piece in windows(texts, 32)][1:]
    assert set(context) == {16}, "half a row is seen again"


def test_a_picture_longer_than_a_row_is_named():
    with pytest.raises(ConfigError, match="seq_len 16: too short"):
        list(windows(document(("text", 3, 1), ("image", 20, 4)), 16))


def test_nats_are_those_of_each_document_alone(config, new_decoder, vocabulary):
    decoder = new_decoder(config)
    flat = [
        document(("text", 7, 1), ("image", 8, 4), vocabulary=vocabulary),
        document(("speech", 9, 1), ("text", 13, 1), seed=1, vocabulary=vocabulary),
        document(("text", 1, 1), seed=2, vocabulary=vocabulary),
    ]
    pieces = [Piece(ids=tokens.ids, first=1 + i) for i, tokens in enumerate(flat)]
    seen = []
    found = nats_of(decoder, pieces, 32, 1, seen.append)
    assert sum(seen) == sum(len(piece.ids) - piece.first for piece in pieces)
    together = nats_of(decoder, pieces, 64, 8)
    for piece, alone, packed in zip(pieces, found, together, strict=True):
        np.testing.assert_allclose(alone, packed, rtol=0, atol=2e-5)
        cache = decoder.start(1)
        logits_TV = torch.cat([decoder.step(torch.tensor([i]), cache) for i in piece.ids.tolist()])
        wanted_T = (
            -logits_TV[:-1].log_softmax(-1).gather(1, torch.tensor(piece.ids[1:, None]))[:, 0]
        )
        np.testing.assert_allclose(alone, wanted_T[piece.first - 1 :], rtol=0, atol=5e-4)
