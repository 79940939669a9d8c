"""Batches of many texts: made in parts and as views of one array, with the libraries' own ids."""

import numpy as np
import pytest
import sentencepiece

from plait.tokenizers.sentencepiece_arrays import batch_encoder
from plait.tokenizers.text import MODEL_FILE, FitOptions, fit
from plait.tokenizers.text_common import TOGETHER, in_threads, to_arrays

DOCUMENTS = ["a rose is a rose, and 日本語 is 😀\n", "def f(x):\n\treturn x ** 2  # 12345\n"] * 20


@pytest.fixture(scope="module")
def pieces():
    model = fit(DOCUMENTS, FitOptions(vocab_size=400)).files()[MODEL_FILE]
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_ids_of_a_batch_are_views_of_one_array(pieces, num_threads):
    texts = [DOCUMENTS[0][: i % 30] for i in range(2 * TOGETHER)]  # also empty ones
    found = batch_encoder(pieces)(texts, num_threads)
    assert [ids.tolist() for ids in found] == pieces.encode(texts)
    assert all(ids.dtype == np.int32 and ids.base is found[0].base for ids in found)
    assert batch_encoder(pieces)([], 1) == []


class Changed:
    """A library whose private call takes its arguments in another order, or is not there."""

    def __init__(self, pieces, call):
        self._pieces = pieces
        if call is not None:
            self._processor = self
            self._EncodeAsBufferBatch = call

    def encode(self, texts, **options):
        return self._pieces.encode(texts, **options)


def test_a_private_call_that_differs_is_not_used(pieces):
    def reversed_ids(texts, *_):
        return [ids[::-1].copy() for ids in pieces.encode(texts, out_type="numpy")]

    def too_few(texts, *_):
        return pieces.encode(texts[1:], out_type="numpy")

    def other_arguments(texts):
        raise AssertionError

    wanted = pieces.encode(DOCUMENTS)
    for call in (None, reversed_ids, too_few, other_arguments):
        found = batch_encoder(Changed(pieces, call))(DOCUMENTS, 1)
        assert [ids.tolist() for ids in found] == wanted


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("count", [0, 1, TOGETHER, 3 * TOGETHER + 1])
def test_parts_stay_in_order_and_small(count, num_threads):
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return to_arrays([[int(text), 7] for text in texts])

    found = in_threads(encode, [str(i) for i in range(count)], num_threads)
    assert [ids.tolist() for ids in found] == [[i, 7] for i in range(count)]
    assert max(sizes) <= TOGETHER and sum(sizes) == count
