"""Sounds for the tests of speech tokenizers."""

import numpy as np

from plait.tokenizers.base import Waveform
from plait.tokenizers.speech_stream import StreamDecoder, StreamEncoder

RATE_HZ = 8000


def hum(seed: int, n: int) -> Waveform:
    """Tones that rise and fall together, and a little noise."""
    random = np.random.default_rng(seed)
    time = np.arange(n) / RATE_HZ
    tones = [np.sin(2 * np.pi * f * time) for f in random.uniform(100, 2000, 6)]
    samples = np.mean(tones, axis=0) * (0.6 + 0.4 * np.sin(9 * time))
    samples += 0.02 * random.standard_normal(n)
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=RATE_HZ)


def pieces(values: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    """The values, cut at these places."""
    return np.split(values, sorted(min(cut, len(values)) for cut in cuts))


def check_streams(codec, sound: Waveform, cuts: list[int]) -> None:
    """Coded and decoded in pieces, a sound gives the ids and the samples of the whole."""
    whole = codec.encode_batch([sound])[0]
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    ids = [
        encoder.push(Waveform(samples=piece, sample_rate_hz=RATE_HZ))
        for piece in pieces(sound.samples, cuts)
        if len(piece)
    ]
    ids.append(encoder.finish())
    assert np.array_equal(np.concatenate(ids), whole.ids)
    heard = np.concatenate([decoder.push(piece) for piece in pieces(whole.ids, cuts)])
    assert np.array_equal(heard, codec.decode(whole).samples)
