import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.tokenizers import residual
from plait.tokenizers.base import Encoded, Waveform, load_tokenizer
from plait.tokenizers.companding import compress, expand
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.mdct import imdct, mdct
from plait.tokenizers.sound import log_mel, prepare
from plait.tokenizers.speech import (
    MDCT,
    FitOptions,
    Units,
    evaluate,
    fit,
)
from plait.tokenizers.speech_metrics import mel_distance_db, multi_mel_distance_db, si_sdr_db, stoi
from plait.tokenizers.units import merge_runs


def voice(seed: int, seconds: float = 0.8, rate_hz: int = 16000) -> Waveform:
    """Something like syllables: harmonics of a gliding pitch under moving formants."""
    random = np.random.default_rng(seed)
    n = int(seconds * rate_hz)
    time = np.arange(n) / rate_hz
    pitch = np.cumsum(random.uniform(90, 220) * (1 + 0.1 * np.sin(3 * time))) / rate_hz
    sound = np.zeros(n)
    for harmonic in range(1, 20):
        formant = np.exp(-((harmonic - 5 - 3 * np.sin(9 * time + seed)) ** 2) / 8)
        sound += formant * np.sin(2 * np.pi * harmonic * pitch + random.uniform(0, 6))
    sound *= 0.5 + 0.5 * np.sin(8 * time + random.uniform(0, 6))
    sound += 0.01 * random.standard_normal(n)
    return Waveform(
        samples=(0.5 * sound / np.abs(sound).max()).astype(np.float32), sample_rate_hz=rate_hz
    )


VOICES = [voice(seed) for seed in range(12)]
OPTIONS = {
    "mdct": FitOptions(codebooks=3, codebook_size=64, beam=4),
    "units": FitOptions(method="units", units=32),
}


@pytest.fixture(scope="module", params=OPTIONS)
def tokenizer(request):
    return fit(VOICES, OPTIONS[request.param])


@pytest.fixture(scope="module")
def codec():
    return fit(VOICES, OPTIONS["mdct"])


@pytest.fixture(scope="module")
def units():
    return fit(VOICES, OPTIONS["units"])


@pytest.mark.parametrize("hop", [16, 320])
@pytest.mark.parametrize("n", [1, 15, 16, 319, 320, 321, 1000])
def test_mdct_reconstructs_and_keeps_energy(n, hop):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    frames = mdct(x, hop)
    assert frames.shape == (-(-n // hop) + 1, hop)
    back = imdct(frames)
    assert len(back) == (len(frames) - 1) * hop
    assert torch.allclose(back[:n], x, atol=1e-5)
    assert float(frames.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-4)


def test_mdct_equals_its_definition():
    hop, x = 16, torch.randn(40, generator=torch.Generator().manual_seed(0))
    padded = np.concatenate([np.zeros(hop), x.numpy(), np.zeros(4 * hop - 40 + hop)])
    place = np.arange(2 * hop)
    for t, frame in enumerate(mdct(x, hop)):
        windowed = padded[t * hop : (t + 2) * hop] * np.sin(np.pi * (place + 0.5) / (2 * hop))
        for k, value in enumerate(frame.tolist()):
            cosine = np.cos(np.pi / hop * (place + 0.5 + hop / 2) * (k + 0.5))
            assert value == pytest.approx(np.sqrt(2 / hop) * (windowed * cosine).sum(), abs=1e-5)


def test_each_residual_level_lowers_the_error():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    books = residual.fit_codebooks(x, 4, 16)
    codes = residual.encode(x, books)
    assert codes.shape == (500, 4)
    errors = [
        float((x - residual.decode(codes[:, :levels], books[:levels])).square().mean())
        for levels in range(1, 5)
    ]
    assert errors == sorted(errors, reverse=True)
    assert (residual.encode(torch.zeros(1, 8), books) == 0).all()


def test_residual_codes_do_not_depend_on_the_other_vectors(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    codebooks_LKD = torch.randn(3, 64, 40, generator=generator).round(decimals=1)
    x_ND = torch.randn(300, 40, generator=generator).round(decimals=1)
    together = residual.encode(x_ND, codebooks_LKD)
    alone = [residual.encode(x_1D, codebooks_LKD) for x_1D in x_ND.split(1)]
    assert torch.equal(torch.cat(alone), together)
    monkeypatch.setattr(residual, "ROWS", 77)
    assert torch.equal(residual.encode(x_ND, codebooks_LKD), together)
    assert residual.encode(x_ND[:0], codebooks_LKD).shape == (0, 3)


def test_codec_is_near_the_original_and_more_levels_are_nearer(codec):
    report = evaluate(codec, VOICES[:4])
    finer = evaluate(fit(VOICES, FitOptions(codebooks=8, codebook_size=64)), VOICES[:4])
    assert 3 < report["si_sdr_db"] < finer["si_sdr_db"]
    assert finer["mel_distance_db"] < report["mel_distance_db"]
    assert report["bits_per_token"] == 6
    assert report["tokens"] == sum(len(e.ids) for e in codec.encode_batch(VOICES[:4]))


@pytest.mark.parametrize("powers", [(1, 1), (0.7, 1), (1, 0.6), (0.85, 0.7)])
def test_companding_is_undone(powers):
    frames = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    frames = frames * torch.logspace(-7, 1, 50)[:, None]
    frames[7] = 0
    assert torch.allclose(expand(compress(frames, *powers), *powers), frames, rtol=1e-3)


def test_codec_layout(codec):
    encoded = codec.encode_batch(VOICES[:1])[0]
    assert codec.vocab_size == 192
    assert encoded.grid == (-(-len(VOICES[0].samples) // 320) + 1, 3)
    assert (encoded.ids.reshape(-1, 3) // 64 == [0, 1, 2]).all()


@pytest.mark.parametrize("n", [1, 2, 319, 320, 321, 5000])
def test_length_of_the_output(codec, n):
    sound = Waveform(samples=VOICES[0].samples[:n], sample_rate_hz=16000)
    decoded = codec.decode(codec.encode_batch([sound])[0])
    assert 0 <= len(decoded.samples) - n < 320
    assert decoded.sample_rate_hz == 16000


def test_batch_and_threads_change_nothing(tokenizer):
    mixed = [*VOICES[:4], voice(50, 0.013), voice(51, 2.1), voice(52, 0.5, 8000)]
    together, before = tokenizer.encode_batch(mixed), torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for sample, encoded in zip(mixed, together, strict=True):
            alone = tokenizer.encode_batch([sample])[0]
            assert np.array_equal(alone.ids, encoded.ids)
            if encoded.durations is not None:
                assert np.array_equal(alone.durations, encoded.durations)
    torch.set_num_threads(before)
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("method", OPTIONS)
def test_fit_gives_the_same_bits_with_any_number_of_threads(method):
    before, prints = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        prints.append(fit(iter(VOICES), OPTIONS[method]).fingerprint)
    torch.set_num_threads(before)
    assert prints[0] == prints[1]
    assert fit(VOICES, OPTIONS[method], seed=1).fingerprint != prints[0]


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    encoded = loaded.encode_batch(VOICES[:1])[0]
    assert np.array_equal(encoded.ids, tokenizer.encode_batch(VOICES[:1])[0].ids)
    assert np.array_equal(loaded.decode(encoded).samples, tokenizer.decode(encoded).samples)


def test_damaged_folders(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    weights, config = tmp_path / "weights.safetensors", tmp_path / "config.json"
    data, text = weights.read_bytes(), config.read_text()
    for damaged in (b"", b"not tensors", data[: len(data) // 2]):
        weights.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged"):
            load_tokenizer(tmp_path)
    weights.write_bytes(data)
    for wrong in ('"x"', "-1", "null", "1e9"):
        config.write_text(text.replace("16000", wrong))
        with pytest.raises(ConfigError, match="sample_rate_hz"):
            load_tokenizer(tmp_path)
    config.write_text(text)
    weights.unlink()
    with pytest.raises(ConfigError, match="missing"):
        load_tokenizer(tmp_path)


def test_weights_of_another_tokenizer(codec, units, tmp_path):
    codec.save(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(units.files()["weights.safetensors"])
    with pytest.raises(ConfigError, match="does not fit"):
        load_tokenizer(tmp_path)
    bad = MDCT.from_files(codec.config(), codec.files())
    bad.codebooks_LKD = bad.codebooks_LKD * torch.nan
    bad.save(tmp_path)
    with pytest.raises(ConfigError, match="not finite"):
        load_tokenizer(tmp_path)


def test_silence(tokenizer, codec):
    silence = Waveform(samples=np.zeros(8000, np.float32), sample_rate_hz=16000)
    decoded = tokenizer.decode(tokenizer.encode_batch([silence])[0])
    assert np.isfinite(decoded.samples).all()
    assert (codec.decode(codec.encode_batch([silence])[0]).samples == 0).all()
    report = evaluate(codec, [silence])
    assert "si_sdr_db" not in report
    assert np.isfinite(list(report.values())).all()


def test_fit_on_silence_alone():
    silence = Waveform(samples=np.zeros(8000, np.float32), sample_rate_hz=16000)
    for options in OPTIONS.values():
        tokenizer = fit([silence], options)
        decoded = tokenizer.decode(tokenizer.encode_batch(VOICES[:1])[0])
        assert np.isfinite(decoded.samples).all()


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([0, np.nan], np.float32), "not finite"),
        (np.array([0, np.inf], np.float32), "not finite"),
        (np.zeros((2, 4), np.float32), "one row"),
    ],
)
def test_unusable_sounds(tokenizer, samples, reason):
    with pytest.raises(SampleError, match=reason):
        tokenizer.encode_batch([VOICES[0], Waveform(samples=samples, sample_rate_hz=16000)])


@given(ids=st.lists(st.integers(0, 191), max_size=20))
@settings(max_examples=30)
def test_codec_decodes_whatever_a_model_generates(codec, ids):
    sound = codec.decode(Encoded(ids=np.array(ids, np.int64), width=3)).samples
    assert len(sound) == max(len(ids) // 3 - 1, 0) * 320
    assert np.isfinite(sound).all()
    assert np.abs(sound).max(initial=0) <= 1


def test_ids_outside_the_vocabulary(tokenizer):
    for wrong in ([-1], [tokenizer.vocab_size]):
        with pytest.raises(SampleError, match="not all in"):
            tokenizer.decode(Encoded(ids=np.array(wrong)))


def test_odd_sample_rates_are_resampled_in_bounded_memory():
    sound = prepare(voice(3, 0.5, 44101), 16000)
    assert abs(len(sound) - 8000) <= 1
    for rate_hz in (1, 3, 10**8):
        with pytest.raises(SampleError, match="too far"):
            prepare(Waveform(samples=np.zeros(100, np.float32), sample_rate_hz=rate_hz), 16000)


def test_resampled_sound_is_the_same_sound():
    time = np.arange(24000) / 48000
    tone = Waveform(samples=np.sin(2 * np.pi * 440 * time).astype(np.float32), sample_rate_hz=48000)
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert np.abs(prepare(tone, 16000).numpy() - expected)[100:-100].max() < 2e-3


def test_units_merge_runs_and_keep_their_lengths(units):
    encoded = units.encode_batch(VOICES[:1])[0]
    assert encoded.durations.dtype == np.uint8
    assert encoded.durations.sum() == 20  # 0.8 s at 25 frames a second
    assert (np.diff(encoded.ids) != 0).all()
    assert len(units.decode(encoded).samples) == 20 * 640
    without = units.decode(Encoded(ids=encoded.ids))
    assert len(without.samples) >= 640 * len(encoded.ids)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 700)), max_size=6))
def test_merged_runs_expand_to_what_they_were(runs):
    units = np.repeat([u for u, _ in runs], [n for _, n in runs]).astype(np.int64)
    ids, durations = merge_runs(units)
    assert np.array_equal(np.repeat(ids, durations), units)
    same = np.diff(ids) == 0
    assert (durations[:-1][same] == 255).all()


def test_units_decode_to_nearly_their_spectrum(units):
    original = prepare(VOICES[0], 16000)
    decoded = torch.from_numpy(units.decode(units.encode_batch(VOICES[:1])[0]).samples)
    other = prepare(VOICES[7], 16000)
    assert mel_distance_db(decoded, original, 16000) < mel_distance_db(other, original, 16000)


def test_units_at_twice_the_rate_and_no_units_at_all():
    units = fit(VOICES, FitOptions(method="units", units=32, unit_rate_hz=50))
    encoded = units.encode_batch(VOICES[:1])[0]
    assert encoded.durations.sum() == 40
    assert len(units.decode(encoded).samples) == len(VOICES[0].samples)
    assert len(units.decode(Encoded(ids=np.zeros(0, np.int32))).samples) == 0


def test_quiet_recordings_have_the_units_of_loud_ones(units):
    quiet = Waveform(samples=VOICES[0].samples / 64, sample_rate_hz=VOICES[0].sample_rate_hz)
    ids = [units.encode_batch([sound])[0].ids for sound in (VOICES[0], quiet)]
    assert np.array_equal(*ids)


def test_folders_of_before_there_was_a_beam_give_the_ids_they_gave(codec):
    assert codec.beam == codec.config()["beam"] == 4
    before = {name: value for name, value in codec.config().items() if name != "beam"}
    greedy = MDCT.from_files(before, codec.files())
    frames_TD = greedy.compress(mdct(prepare(VOICES[0], 16000), greedy.hop))
    codes_TL = residual.encode(frames_TD, greedy.codebooks_LKD)
    expected = codes_TL + torch.arange(3) * 64
    ids = greedy.encode_batch(VOICES[:1])[0].ids
    assert np.array_equal(ids, expected.flatten().numpy())
    assert not np.array_equal(ids, codec.encode_batch(VOICES[:1])[0].ids)
    with pytest.raises(ConfigError, match="beam"):
        FitOptions(beam=0)


def test_wrong_durations(units):
    with pytest.raises(SampleError, match="durations"):
        units.decode(Encoded(ids=np.array([1, 2]), durations=np.array([1], np.uint8)))


def test_nothing_to_fit_on_and_wrong_options():
    with pytest.raises(ConfigError, match="no sound"):
        fit([], FitOptions())
    for wrong in (
        {"codebooks": 0},
        {"codebook_size": 1},
        {"companding": 0},
        {"loudness_companding": 2},
        {"hop": 2},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FitOptions(**wrong)


def test_metrics():
    x = prepare(VOICES[0], 16000)
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    noise -= (noise @ x) / (x @ x) * x
    noise *= x.norm() / noise.norm() / 10
    assert si_sdr_db(x + noise, x) == pytest.approx(20, abs=1e-3)
    assert si_sdr_db(3 * (x + noise), x) == pytest.approx(20, abs=1e-3)
    assert si_sdr_db(x, x) > 100
    assert np.isnan(si_sdr_db(x, torch.zeros_like(x)))
    assert mel_distance_db(x, x, 16000) == 0
    assert mel_distance_db(x / 10, x, 16000) == pytest.approx(20, abs=1)
    assert log_mel(x, 16000, 160).shape == (80, 80)


def test_multi_resolution_mel_distance():
    x = prepare(VOICES[0], 16000)
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    assert multi_mel_distance_db(x, x, 16000) == 0
    near, far = (multi_mel_distance_db(x + a * noise, x, 16000) for a in (0.003, 0.03))
    assert 0 < near < far
    assert multi_mel_distance_db(x / 10, x, 16000) == pytest.approx(20, abs=2)


def test_stoi():
    pytest.importorskip("pystoi", reason="needs plait[metrics]")
    x = prepare(voice(0, 2.0), 16000)
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    assert stoi(x, x, 16000) == pytest.approx(1, abs=1e-6)
    assert stoi(x + 0.5 * noise, x, 16000) < stoi(x + 0.05 * noise, x, 16000) < 0.999
    assert np.isnan(stoi(x[:3000], x[:3000], 16000))
    assert np.isnan(stoi(x, torch.zeros_like(x), 16000))
    click = torch.zeros(16000)
    click[5000] = 1
    assert np.isnan(stoi(click, click, 16000))


def test_stoi_is_left_out_without_its_package(codec, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = evaluate(codec, VOICES[:1])
    assert "stoi" not in report
    assert "si_sdr_db" in report


def test_units_is_found_beside_the_codec():
    assert Units.modality == MDCT.modality == "speech"
