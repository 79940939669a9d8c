import json

import numpy as np
import pytest
import torch

from plait.tokenizers import stream_kmeans
from plait.tokenizers.base import Waveform, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.kmeans import assign, kmeans
from plait.tokenizers.speech import FitOptions, Units, evaluate, fit
from plait.tokenizers.speech_model import SpeechModel
from plait.tokenizers.stream_kmeans import StreamKMeans

transformers = pytest.importorskip("transformers", reason="needs plait[pretrained]")
KINDS = {
    "hubert": transformers.HubertConfig,
    "wav2vec2": transformers.Wav2Vec2Config,
    "wavlm": transformers.WavLMConfig,
}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (20, 9, 4),
    "conv_stride": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LAYER = 2


def sound(seed: int, n: int = 16000) -> Waveform:
    random = np.random.default_rng(seed)
    time = np.arange(n) / 16000
    samples = np.sin(2 * np.pi * random.uniform(100, 900) * time * (1 + 0.3 * np.sin(7 * time)))
    samples = 0.3 * samples + 0.02 * random.standard_normal(n)
    return Waveform(samples=samples.astype(np.float32), sample_rate_hz=16000)


SOUNDS = [sound(seed) for seed in range(8)]


def save_model(folder, kind="hubert", **changes):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(KINDS[kind](**{**SMALL, **changes}))
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hubert")
    save_model(path)
    return path


@pytest.fixture(scope="module")
def units(folder) -> Units:
    options = FitOptions(method="units", units=24, unit_rate_hz=50, model=str(folder), layer=LAYER)
    tokenizer = fit(SOUNDS, options)
    assert isinstance(tokenizer, Units)
    return tokenizer


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_features_are_the_library_s_own(tmp_path, kind, stable, layer):
    norm = "layer" if stable else "group"
    theirs = save_model(tmp_path, kind, do_stable_layer_norm=stable, feat_extract_norm=norm)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    model = SpeechModel.from_folder(tmp_path, layer)
    x = torch.from_numpy(SOUNDS[0].samples)
    with torch.no_grad():
        expected = theirs(x[None], output_hidden_states=True).hidden_states[layer][0]
    assert torch.allclose(model.features(x), expected, atol=1e-5)
    again = SpeechModel.from_files(model.config(), model.files())
    assert torch.equal(again.features(x), model.features(x))
    assert again.files() == model.files()


def test_normalization_is_the_library_s_own(folder):
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    x = SOUNDS[0].samples * 0.1 + 0.05
    theirs = extractor(x, sampling_rate=16000, return_tensors="pt").input_values[0]
    model = SpeechModel.from_folder(folder, LAYER)
    assert model.normalize
    ours = model.features(torch.from_numpy(x))
    model.normalize = False
    assert torch.allclose(model.features(theirs), ours, atol=1e-4)
    assert not torch.allclose(model.features(torch.from_numpy(x)), ours, atol=1e-2)


def test_same_ids_in_any_batch_on_any_threads_and_after_loading(units, tmp_path):
    units.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == units.fingerprint
    mixed = [SOUNDS[0], sound(20, 5000), sound(21, 1), sound(22, 40000), SOUNDS[1]]
    together, before = units.encode_batch(mixed), torch.get_num_threads()
    assert len(np.unique(together[3].ids)) > 3
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for sample, encoded in zip(mixed, together, strict=True):
            for tokenizer in (units, loaded):
                alone = tokenizer.encode_batch([sample])[0]
                assert np.array_equal(alone.ids, encoded.ids)
                assert np.array_equal(alone.durations, encoded.durations)
    torch.set_num_threads(before)


def test_the_model_is_in_the_folder_and_in_the_fingerprint(units, tmp_path):
    units.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "config.json",
        "weights.safetensors",
        "model_config.json",
        "model.safetensors",
    }
    assert json.loads((tmp_path / "model_config.json").read_text())["num_hidden_layers"] == 3
    changed = SpeechModel.from_files(units.model.config(), units.model.files())
    next(iter(changed.model.parameters())).data[0] += 1
    rates = {"sample_rate_hz": 16000, "unit_rate_hz": 50}
    assert Units(units.weights, model=changed, **rates).fingerprint != units.fingerprint
    assert Units(units.weights, model=units.model, **rates).fingerprint == units.fingerprint


def test_layers_above_are_dropped(folder):
    model = SpeechModel.from_folder(folder, 0)
    assert len(model.model.encoder.layers) == 1
    assert b"encoder.layers.1." not in model.files()["model.safetensors"]


def test_rates_and_report(units, folder):
    encoded = units.encode_batch([SOUNDS[0]])[0]
    assert encoded.durations.sum() == (16000 - units.model.receptive) // 320 + 1
    report = evaluate(units, SOUNDS[:2])
    assert "si_sdr_db" not in report
    assert report["codes_used"] + report["codes_dead"] == 24
    slow = fit(SOUNDS, FitOptions(method="units", units=8, model=str(folder), layer=LAYER))
    durations = slow.encode_batch([SOUNDS[0]])[0].durations
    assert durations.sum() == -(-int(encoded.durations.sum()) // 2)


def test_long_sounds_are_cut_into_parts_without_losing_a_frame(units, monkeypatch):
    monkeypatch.setattr("plait.tokenizers.speech_model.SEGMENT_S", 1)
    n = 50_001
    encoded = units.encode_batch([sound(3, n)])[0]
    assert encoded.durations.sum() == (n - units.model.receptive) // 320 + 1


def test_unusable_sounds(units):
    with pytest.raises(SampleError, match="empty"):
        units.encode_batch([Waveform(samples=np.zeros(0, np.float32), sample_rate_hz=16000)])
    silent = Waveform(samples=np.zeros(3, np.float32), sample_rate_hz=16000)
    assert len(units.encode_batch([silent])[0].ids) == 1


def test_wrong_folders(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"layer is 4: .* 0\.\.3"):
        SpeechModel.from_folder(folder, 4)
    with pytest.raises(ConfigError, match="No such file"):
        SpeechModel.from_folder(tmp_path / "nothing", 1)
    text = (folder / "config.json").read_text()
    for wrong, reason in (
        ("{", "not a model's configuration"),
        ("[]", "not a model's configuration"),
        ('{"model_type": "bert"}', "model_type is 'bert'"),
        (text.replace('"hidden_size": 16', '"hidden_size": 99999999'), "hidden_size is 99999999"),
        (text.replace('"num_hidden_layers": 3', '"num_hidden_layers": -1'), "num_hidden_layers"),
        (text, "other formats of weights"),
    ):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(ConfigError, match=reason):
            SpeechModel.from_folder(tmp_path, 1)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="cannot be read"):
        SpeechModel.from_folder(tmp_path, 1)
    for wrong in (
        text.replace('"gelu"', '"gelus"'),
        text.replace('"hidden_size": 16', '"hidden_size": 32'),
    ):
        (tmp_path / "config.json").write_text(wrong)
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(ConfigError, match="cannot be read"):
            SpeechModel.from_folder(tmp_path, 1)
    (tmp_path / "config.json").write_text(
        text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')
    )
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"lacks encoder\.layers\.3"):
        SpeechModel.from_folder(tmp_path, 1)


def test_damaged_tokenizer_folders(units, tmp_path):
    units.save(tmp_path)
    text = (tmp_path / "model_config.json").read_text()
    (tmp_path / "model_config.json").write_text(
        text.replace('"hidden_size": 16', '"hidden_size": 32')
    )
    with pytest.raises(ConfigError, match="does not fit"):
        load_tokenizer(tmp_path)
    (tmp_path / "model_config.json").unlink()
    with pytest.raises(ConfigError, match="is missing"):
        load_tokenizer(tmp_path)


def test_options_that_do_not_go_together(folder):
    with pytest.raises(ConfigError, match="method = units"):
        FitOptions(model=str(folder))
    with pytest.raises(ConfigError, match="take 16000"):
        fit(SOUNDS, FitOptions(method="units", model=str(folder), layer=1, sample_rate_hz=8000))


def test_stream_kmeans_starts_as_kmeans_and_keeps_running_means():
    generator = torch.Generator().manual_seed(0)
    centers = 4 * torch.randn(20, 5, generator=generator)
    x = centers.repeat(200, 1) + torch.randn(4000, 5, generator=generator)
    learner = StreamKMeans(x[:1000], 20)
    assert torch.equal(learner.centroids_KD, kmeans(x[:1000], 20))
    before = assign(x, learner.centroids_KD)[1].mean()
    for batch in x[1000:].split(500):
        learner.update(batch)
    whole = assign(x, kmeans(x, 20))[1].mean()
    after = assign(x, learner.centroids_KD)[1].mean()
    assert whole * 0.99 < after < before
    assert learner.counts_K.sum() == 4000
    one = StreamKMeans(torch.zeros(3, 2), 1)
    one.update(torch.full((1, 2), 8.0))
    assert one.centroids_KD.tolist() == [[2.0, 2.0]]


def test_a_stream_holds_no_more_than_the_pool(monkeypatch):
    monkeypatch.setattr(stream_kmeans, "POOL", 100)
    monkeypatch.setattr(stream_kmeans, "BATCH", 40)
    alive, most = 0, 0

    class Counted:
        """A piece that counts how many of its kind are alive."""

        def __init__(self):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __len__(self):
            return 10

        def __del__(self):
            nonlocal alive
            alive -= 1

    sizes = []
    for batch in stream_kmeans.batches((Counted(),) for _ in range(33)):
        sizes.append(len(batch))
        del batch
    assert sizes == [10, 4, 4, 4, 4, 4, 3]
    assert most <= 15


def test_units_of_a_stream_learn_from_all_of_it(monkeypatch):
    monkeypatch.setattr(stream_kmeans, "POOL", 50)
    monkeypatch.setattr(stream_kmeans, "BATCH", 50)
    options = FitOptions(method="units", units=16, stream=True, max_minutes=0.02)
    first, again = (fit(iter(SOUNDS), options) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert fit(SOUNDS[:2], options).fingerprint != first.fingerprint
    assert len(first.decode(first.encode_batch(SOUNDS[:1])[0]).samples) == 16000
    with pytest.raises(ConfigError, match="no sound"):
        fit([], options)
