"""The codec of two causal networks around residual codes."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vector_quantize_pytorch")

from plait.tokenizers import layouts
from plait.tokenizers.base import Encoded, Waveform, load_tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState
from plait.tokenizers.speech import MDCT, FitOptions, evaluate, fit
from plait.tokenizers.speech_codec import ConvCodec
from plait.tokenizers.speech_losses import SoundLoss, spectral_loss, waveform_loss
from plait.tokenizers.speech_stream import StreamDecoder, StreamEncoder

from .made_sounds import RATE_HZ, check_streams, hum, pieces

HOP, LEVELS, CODES = 80, 3, 32
CLOSED = {
    "codebooks": LEVELS,
    "codebook_size": CODES,
    "hop": HOP,
    "sample_rate_hz": RATE_HZ,
    "shifts": 1,
}
TINY = {**CLOSED, "method": "conv", "preset": "tiny", "steps": 12, "crop_s": 0.3}
SOUNDS = [hum(seed, 4000) for seed in range(12)]
LONG = hum(99, 80 * HOP + 33)
"""Of more than two of the networks' blocks."""


def made(**changes) -> ConvCodec:
    codec = fit(SOUNDS, FitOptions(**{**TINY, **changes}))
    assert isinstance(codec, ConvCodec)
    return codec


@pytest.fixture(scope="module")
def flat() -> ConvCodec:
    """Trained with much too high weights at its ends, so that both networks do something."""
    codec = made()
    generator = torch.Generator().manual_seed(0)
    for network in (codec.codec.encoder, codec.codec.decoder):
        weight = network.correct.weight
        weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return codec


@pytest.fixture(scope="module", params=[1, 4])
def codec(flat, request) -> ConvCodec:
    return ConvCodec.from_files({**flat.config(), "block": request.param}, flat.files())


def ids_of(codec: MDCT, sound: Waveform) -> np.ndarray:
    return codec.encode_batch([sound])[0].ids


def test_untrained_it_is_the_closed_form_codec():
    closed, start = fit(SOUNDS, FitOptions(**CLOSED)), made(steps=0)
    assert isinstance(closed, MDCT)
    encoded = closed.encode_batch([LONG])[0]
    assert np.array_equal(ids_of(start, LONG), encoded.ids)
    assert np.array_equal(start.decode(encoded).samples, closed.decode(encoded).samples)


@pytest.mark.parametrize("frame", [1, 31, 32, 40, 79])
def test_later_sound_changes_no_earlier_code(flat, frame):
    """Frame t ends with sample (t + 1) * HOP, and its codes hang on nothing after that."""
    changed = LONG.samples.copy()
    changed[frame * HOP :] = hum(7, len(changed)).samples[frame * HOP :]
    other = ids_of(flat, Waveform(samples=changed, sample_rate_hz=RATE_HZ))
    ids = ids_of(flat, LONG)
    assert np.array_equal(other[: frame * LEVELS], ids[: frame * LEVELS])
    assert not np.array_equal(other[frame * LEVELS :], ids[frame * LEVELS :])


@pytest.mark.parametrize("frame", [1, 31, 32, 40, 79])
def test_later_codes_change_no_earlier_sound(flat, frame):
    ids = ids_of(flat, LONG)
    changed = ids.copy()
    changed[frame * LEVELS] = (changed[frame * LEVELS] + 1) % CODES
    one, other = (flat.decode(Encoded(ids=i, width=LEVELS)).samples for i in (ids, changed))
    assert np.array_equal(one[: (frame - 1) * HOP], other[: (frame - 1) * HOP])
    after = (frame + 1) * HOP
    assert not np.array_equal(one[frame * HOP : after], other[frame * HOP : after])
    assert not np.array_equal(one[after:], other[after:]) or frame == 79


@given(n=st.integers(1, 9000), cuts=st.lists(st.integers(0, 9000), max_size=12))
@settings(max_examples=25, deadline=None)
def test_streams_in_any_pieces_equal_the_whole(codec, n, cuts):
    check_streams(codec, hum(99, n), cuts)


def test_frame_by_frame(codec):
    whole = codec.encode_batch([LONG])[0]
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    found = [
        encoder.push(Waveform(samples=piece, sample_rate_hz=RATE_HZ))
        for piece in pieces(LONG.samples, list(range(HOP, len(LONG.samples), HOP)))
    ]
    assert np.array_equal(np.concatenate([*found, encoder.finish()]), whole.ids)
    heard = [decoder.push(row) for row in whole.ids.reshape(-1, codec.width)]
    assert np.array_equal(np.concatenate(heard), codec.decode(whole).samples)


def test_every_layout_inverts_exactly(flat, codec):
    grid = layouts.unflatten(ids_of(flat, LONG), LEVELS)
    ids = ids_of(codec, LONG)
    assert np.array_equal(layouts.from_coarse_first(ids, LEVELS, codec.block)[: len(grid)], grid)
    assert np.array_equal(layouts.undelay(layouts.delay(grid, -1)), grid)
    assert np.array_equal(layouts.flatten(grid), ids_of(flat, LONG))
    assert all(id_ in codec.allowed(place) for place, id_ in enumerate(ids))
    heard = codec.decode(Encoded(ids=ids, width=codec.width)).samples
    plain = flat.decode(flat.encode_batch([LONG])[0]).samples
    assert np.array_equal(heard[: len(plain)], plain)


def test_threads_and_a_way_through_the_disk_change_nothing(flat, tmp_path):
    flat.save(tmp_path)
    loaded, before = load_tokenizer(tmp_path), torch.get_num_threads()
    assert isinstance(loaded, ConvCodec) and loaded.fingerprint == flat.fingerprint
    encoded = flat.encode_batch([LONG])[0]
    sound = flat.decode(encoded).samples
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert np.array_equal(ids_of(loaded, LONG), encoded.ids)
        assert np.array_equal(loaded.decode(encoded).samples, sound)
    torch.set_num_threads(before)


def test_training_brings_sounds_it_has_not_seen_nearer_and_uses_its_codes():
    held_out = [hum(seed, 4000) for seed in range(40, 44)]
    figures: dict[str, list[float]] = {}

    def progress(_message: str, _share: float, **found: float) -> None:
        for name, value in found.items():
            figures.setdefault(name, []).append(value)

    options = FitOptions(**{**TINY, "steps": 80})
    trained = fit(SOUNDS, options, progress=progress)
    start, end = evaluate(made(steps=0), held_out), evaluate(trained, held_out)
    assert end["si_sdr_db"] > start["si_sdr_db"] + 0.3
    assert end["multi_mel_db"] < start["multi_mel_db"] - 0.3
    assert end["codes_used"] >= 0.7 * LEVELS * CODES
    assert figures["codes_used"][-1] >= 0.7
    assert np.mean(figures["loss"][-3:]) < 0.95 * figures["loss"][0]


@pytest.mark.parametrize(("rate_hz", "hop"), [(16_000, 320), (24_000, 300)])
def test_other_rates_and_hops(rate_hz, hop):
    codec = made(sample_rate_hz=rate_hz, hop=hop, steps=2)
    encoded = codec.encode_batch([LONG])[0]
    samples = len(LONG.samples) * rate_hz // RATE_HZ
    assert encoded.grid == (-(-samples // hop) + 1, LEVELS)
    heard = codec.decode(encoded)
    assert heard.sample_rate_hz == rate_hz and 0 <= len(heard.samples) - samples < hop


class KilledError(Exception):
    pass


def killed_at(share: float):
    def progress(_message: str, done: float, **figures: float) -> None:
        if figures and done >= share:
            raise KilledError

    return progress


@pytest.mark.parametrize("patience", [0, 3])
def test_a_killed_fit_ends_with_the_same_bits(tmp_path, patience):
    options = FitOptions(**{**TINY, "steps": 20, "patience": patience})
    rng = torch.get_rng_state()
    whole = fit(SOUNDS, options)
    assert torch.equal(torch.get_rng_state(), rng)
    with pytest.raises(KilledError):
        fit(SOUNDS, options, state=FitState(tmp_path / "state", "a", 0.0), progress=killed_at(0.6))
    taken_up = FitState(tmp_path / "state", "a", 0.0)
    saved = taken_up.load()
    assert saved is not None and 0 < int(saved["step"]) < 20
    assert fit(SOUNDS, options, state=taken_up).fingerprint == whole.fingerprint
    assert fit(SOUNDS, options, state=KEPT_NOWHERE, seed=1).fingerprint != whole.fingerprint


def test_patience_shows_the_loss_of_sounds_set_aside():
    seen = []

    def progress(_message: str, _share: float, **figures: float) -> None:
        seen.extend(value for name, value in figures.items() if name == "loss_aside")

    fit(
        SOUNDS,
        FitOptions(**{**TINY, "steps": 50, "crop_s": 0.1, "patience": 50}),
        progress=progress,
    )
    assert len(seen) == 50 and seen[-1] < seen[0]


def test_silence(flat):
    silence = Waveform(samples=np.zeros(4000, np.float32), sample_rate_hz=RATE_HZ)
    heard = flat.decode(flat.encode_batch([silence])[0]).samples
    assert np.abs(heard).max() < 1e-2
    trained = fit([silence], FitOptions(**TINY))
    assert np.isfinite(trained.decode(trained.encode_batch(SOUNDS[:1])[0]).samples).all()


def test_damaged_folders(flat, tmp_path):
    flat.save(tmp_path)
    path, config = (
        tmp_path / "weights.safetensors",
        json.loads((tmp_path / "config.json").read_text()),
    )
    for key, value in [("dim", 33), ("dim", 10**9), ("n_blocks", 0), ("hop", 20), ("block", 0)]:
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ConfigError):
            load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        load_tokenizer(tmp_path)
    tensors = safetensors.torch.load(data)
    for name, wrong, reason in [
        ("bins", tensors["bins"] + HOP, "hop"),
        ("bins", tensors["bins"][:-1].clone(), "hop"),
        ("codebooks_LKD", tensors["codebooks_LKD"] * torch.nan, "not finite"),
        ("decoder.norm.weight", torch.ones(5), "decoder.norm.weight"),
        ("decoder.norm.weight", tensors["decoder.norm.weight"].double(), "float64"),
    ]:
        path.write_bytes(safetensors.torch.save({**tensors, name: wrong}))
        with pytest.raises(ConfigError, match=reason):
            load_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match="missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"preset": "huge"},
        {"steps": -1},
        {"crop_s": 0.0},
        {"spectral": -1.0},
        {"threads": 0},
        {"patience": 51},
        {"stream": True},
        {"waveform": 0.0, "spectral": 0.0},
        {"method": "mdct", "patience": 3},
    ],
)
def test_wrong_options(change):
    with pytest.raises(ConfigError, match=list(change)[-1]):
        FitOptions(**{**TINY, **change})


def test_losses_fall_with_the_error_and_have_finite_gradients():
    x = torch.from_numpy(np.stack([s.samples for s in SOUNDS[:3]]))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert waveform_loss(x, x) == 0 and spectral_loss(x, x, RATE_HZ) == 0
    for loss in (waveform_loss, lambda y, x: spectral_loss(y, x, RATE_HZ)):
        assert 0 < loss(x + 0.01 * noise, x) < loss(x + 0.1 * noise, x)
    silent = torch.zeros_like(x, requires_grad=True)
    SoundLoss(FitOptions(**TINY))(silent, x).backward()
    assert silent.grad is not None and torch.isfinite(silent.grad).all()
