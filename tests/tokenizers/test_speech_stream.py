import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.tokenizers.base import Encoded, Waveform, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.speech import MDCT, FitOptions, evaluate, fit
from plait.tokenizers.speech_stream import StreamDecoder, StreamEncoder

from .made_sounds import RATE_HZ, check_streams, hum

HOP = 80
SMALL = {"codebooks": 3, "codebook_size": 32, "hop": HOP, "sample_rate_hz": RATE_HZ}
SOUNDS = [hum(seed, 6000) for seed in range(8)]


@pytest.fixture(scope="module", params=[1, 4])
def codec(request) -> MDCT:
    tokenizer = fit(SOUNDS, FitOptions(**SMALL, block=request.param))
    assert isinstance(tokenizer, MDCT)
    return tokenizer


@given(n=st.integers(1, 12000), cuts=st.lists(st.integers(0, 12000), max_size=12))
@settings(max_examples=40, deadline=None)
def test_streams_in_any_pieces_equal_the_whole(codec, n, cuts):
    check_streams(codec, hum(99, n), cuts)


def test_frame_by_frame_with_one_frame_of_look_ahead(codec):
    whole = codec.encode_batch(SOUNDS[:1])[0]
    decoder, heard = StreamDecoder(codec), []
    for number, row in enumerate(whole.ids.reshape(-1, codec.width)):
        heard.append(decoder.push(row))
        assert sum(map(len, heard)) == ((number + 1) * codec.block - 1) * HOP
    assert np.array_equal(np.concatenate(heard), codec.decode(whole).samples)
    encoder = StreamEncoder(codec)
    frames = 0
    for number, piece in enumerate(SOUNDS[0].samples.reshape(-1, HOP)):
        ids = encoder.push(Waveform(samples=piece, sample_rate_hz=RATE_HZ))
        frames += len(ids) // codec.codebooks
        assert frames == (number + 1) // codec.block * codec.block


def test_what_a_stream_refuses(codec):
    with pytest.raises(SampleError, match="not all in"):
        StreamDecoder(codec).push(np.array([codec.vocab_size]))
    with pytest.raises(SampleError, match="resample it whole"):
        StreamEncoder(codec).push(Waveform(samples=SOUNDS[0].samples, sample_rate_hz=16000))
    with pytest.raises(SampleError, match="empty"):
        StreamEncoder(codec).finish()


def test_a_block_is_ordered_level_by_level_and_every_place_allows_what_stands_there(codec):
    flat = fit(SOUNDS, FitOptions(**SMALL))
    whole, plain = codec.encode_batch(SOUNDS[:1])[0], flat.encode_batch(SOUNDS[:1])[0]
    frames = -(-len(plain.ids) // 3 // codec.block) * codec.block
    assert len(whole.ids) == frames * 3
    assert whole.width == codec.width == 3 * codec.block
    for position, id_ in enumerate(whole.ids):
        assert id_ in codec.allowed(position)
        assert len(codec.allowed(position)) == 32
    levels = (whole.ids // 32).reshape(-1, codec.width)
    assert (levels == np.repeat([0, 1, 2], codec.block)).all()
    n = len(flat.decode(plain).samples)
    assert np.array_equal(codec.decode(whole).samples[:n], flat.decode(plain).samples)
    assert (codec.fingerprint == flat.fingerprint) == (codec.block == 1)


def test_a_span_that_is_cut_at_its_width_decodes_in_parts(codec):
    whole = codec.encode_batch(SOUNDS[:1])[0]
    sound = codec.decode(whole).samples
    at = 5 * codec.width
    first = codec.decode(Encoded(ids=whole.ids[:at], width=codec.width)).samples
    assert np.array_equal(first, sound[: len(first)])
    second = codec.decode(Encoded(ids=whole.ids[at:], width=codec.width)).samples
    assert np.abs(second - sound[5 * codec.block * HOP :]).max() < 1e-6


def test_block_in_the_folder(codec, tmp_path):
    codec.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, MDCT)
    assert (loaded.block, loaded.fingerprint) == (codec.block, codec.fingerprint)
    with pytest.raises(ConfigError, match="block"):
        FitOptions(block=0)
    with pytest.raises(ConfigError, match="block"):
        MDCT.from_files({**codec.config(), "block": 10**9}, codec.files())


def test_report_counts_codes_by_level(codec):
    report = evaluate(codec, SOUNDS[:3])
    assert report["codes_used"] + report["codes_dead"] == 96
    assert sum(report[f"codes_used_level_{level}"] for level in range(3)) == report["codes_used"]
    assert report["bits_per_s"] == pytest.approx(report["tokens_per_s"] * 5)
    assert report["multi_mel_db"] > 0


def test_more_shifts_fit_unseen_sound_better():
    held_out = [hum(seed, 6000) for seed in range(50, 54)]
    scores = [
        evaluate(fit(SOUNDS, FitOptions(**SMALL, shifts=shifts)), held_out)["si_sdr_db"]
        for shifts in (1, 4)
    ]
    assert scores[0] < scores[1]
