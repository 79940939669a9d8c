"""The byte language model: exact however a text is cut, nothing from outside its window."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.tokenizers.base import load_tokenizer
from plait.tokenizers.byte_lm import FitOptions, LMEntropies, LMPatch, evaluate, fit
from plait.tokenizers.byte_network import BEGIN, ByteNetwork, NetworkConfig
from plait.tokenizers.byte_train import allowed_keys, aside_loss, crop_loss, laid_out
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import FitState

CONFIG = NetworkConfig(dim=16, n_layers=2, n_heads=2, window=8, hash_bits=5)
TINY = FitOptions(
    dim=16,
    n_layers=2,
    n_heads=2,
    window=8,
    hash_bits=6,
    lr=1e-2,
    steps=80,
    batch=8,
    seq_len=32,
    mean_patch=4.0,
    max_patch=12,
)
TEXTS = [b"a cat sat on the mat, and a bat sat on a hat. " * 8, b"to be, or not to be " * 9]


class KilledError(Exception):
    pass


def random_network(config: NetworkConfig = CONFIG) -> ByteNetwork:
    """No weight is zero, so that everything that can be seen has an effect."""
    torch.manual_seed(0)
    network = ByteNetwork(config)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    return network


SOURCE = LMEntropies(random_network())
TOKENIZER = LMPatch(
    FitOptions(threshold=4.0, max_patch=7, rule="both", rise=-0.2, seq_len=128), SOURCE
)


@pytest.fixture(scope="module")
def fitted() -> LMPatch:
    return fit(TEXTS, TINY)


def entropies(data: bytes) -> np.ndarray:
    return SOURCE.stream().push(np.frombuffer(data, np.uint8), np.zeros(1, np.int64))


@given(
    samples=st.lists(st.binary(max_size=50), max_size=3),
    cuts=st.lists(st.integers(0, 50), max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_streaming_and_offline_agree_to_the_last_bit(samples, cuts):
    data = np.frombuffer(b"".join(samples), np.uint8)
    firsts = np.cumsum([0, *map(len, samples[:-1])], dtype=np.int64)[: len(samples)]
    offline = SOURCE.stream().push(data, firsts)
    stream, marks, parts, starts = SOURCE.stream(), TOKENIZER.stream(), [], []
    for sample in samples:
        bounds = [0, *sorted(min(cut, len(sample)) for cut in cuts), len(sample)]
        for number, (a, b) in enumerate(pairwise(bounds)):
            piece, first = sample[a:b], np.zeros(0 if number else 1, np.int64)
            parts.append(stream.push(np.frombuffer(piece, np.uint8), first))
            starts.append(marks.push(piece, new_document=not number))
    assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *parts]), offline)
    encoded = TOKENIZER.encode_batch(samples)
    whole = [start for one in encoded for start in one.patch_starts.tolist()]
    assert [start for part in starts for start in part.tolist()] == whole


@pytest.mark.parametrize("sizes", [{}, {"dim": 128, "n_heads": 4, "window": 128}])
def test_a_byte_at_a_time_equals_the_whole(sizes):
    """Also at the real width, where a matrix product takes other paths than at tiny ones."""
    config = NetworkConfig(**{**CONFIG.__dict__, **sizes})
    source = LMEntropies(random_network(config))
    rng = np.random.default_rng(0)
    data, firsts = rng.integers(97, 123, 300, np.uint8), np.array([0, 20])
    offline = source.stream().push(data, firsts)
    stream, parts = source.stream(), []
    for i in range(len(data)):
        parts.append(stream.push(data[i : i + 1], np.zeros(int(i in (0, 20)), np.int64)))
    assert np.array_equal(np.concatenate(parts), offline)
    assert len(np.unique(offline)) > 250


def test_threads_and_batch_mates_change_nothing():
    samples = [bytes(np.random.default_rng(i).integers(0, 256, 90, np.uint8)) for i in range(3)]
    alone = [TOKENIZER.encode_batch([sample])[0].patch_starts for sample in samples]
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for one, both in zip(alone, TOKENIZER.encode_batch(samples), strict=True):
                assert np.array_equal(one, both.patch_starts)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


@given(data=st.binary(min_size=30, max_size=60), at=st.integers(0, 59))
@settings(max_examples=30, deadline=None)
def test_an_entropy_comes_from_bytes_before_it_and_inside_the_window(data, at):
    at = min(at, len(data) - 1)
    changed = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
    differs = np.flatnonzero(entropies(data) != entropies(changed))
    reach = CONFIG.n_layers * (CONFIG.window - 1) + 4  # the longest n-gram has four bytes
    assert all(at < i <= at + reach for i in differs)
    assert at > len(data) - 5 or len(differs)  # one alone may be the same by chance


def test_blocks_equal_a_dense_mask():
    """One pass over all blocks, as in training, and the stream that goes block by block."""
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 5 * CONFIG.window, np.uint8)
    inputs, document = laid_out([data.tobytes()], 0)
    T = len(data)
    padded = np.concatenate([np.full(3, BEGIN), inputs[:T].numpy()]).astype(np.int64)
    lagged = np.lib.stride_tricks.sliding_window_view(padded, 4)[:, ::-1].copy()
    blocks = (1, 5, CONFIG.window)
    allowed = allowed_keys(document[:T].view(blocks))
    logp, _ = SOURCE.network(torch.from_numpy(lagged).view(*blocks, 4), allowed)
    bits = -logp.view(T, 256)[torch.arange(T), torch.from_numpy(data).long()] / np.log(2)
    assert np.allclose(bits, SOURCE.bits(data, np.zeros(1, np.int64)), atol=1e-4)

    query, key = torch.arange(T)[:, None], torch.arange(T)
    dense = (key <= query) & (query - key < CONFIG.window)
    seen = torch.zeros(T, T, dtype=torch.bool)
    for block in range(5):
        first = block * CONFIG.window
        for column in range(2 * CONFIG.window):
            if first - CONFIG.window + column >= 0:
                place = slice(first, first + CONFIG.window)
                seen[place, first - CONFIG.window + column] = allowed[0, block, :, column]
    assert torch.equal(seen, dense)


def test_training_sees_documents_apart():
    """A crop's loss is the mean of what the stream says of each document."""
    documents = [b"abc", b"defgh", b"i"]
    inputs, document = laid_out(documents, 0)
    options = FitOptions(seq_len=8, window=8, batch=1)
    text = torch.cat([torch.full((3,), BEGIN, dtype=torch.int16), inputs])
    number = torch.cat([torch.zeros(3, dtype=torch.int32), document])
    padded = torch.cat([text[:13], text[13:14]])  # one crop alone fits: inputs 0 .. 7
    loss = crop_loss(SOURCE.network, padded[:12], number[:12], options, torch.Generator())
    data = np.frombuffer(b"".join(documents), np.uint8)
    bits = SOURCE.bits(data, np.array([0, 3, 8]))
    foretold = bits[:7]  # BEGIN a b c BEGIN d e f foretell a b c - d e f g
    assert loss.item() / np.log(2) == pytest.approx(foretold.mean(), rel=1e-5)


def test_fit_learns_and_repeats(fitted):
    report = evaluate(fitted, TEXTS)
    assert report["model_bits_per_byte"] < 2.5  # 8 before training, 3.4 for letters alone
    assert report["exact"] == 1 and report["longest_patch"] <= 12
    assert report["bytes_per_patch"] == pytest.approx(4.0, rel=0.2)
    assert fit(TEXTS, TINY).fingerprint == fitted.fingerprint
    assert fit(TEXTS, TINY, seed=1).fingerprint != fitted.fingerprint


def test_a_killed_fit_goes_on_to_the_same_weights(fitted, tmp_path):
    path, seen = tmp_path / "state", []

    def stop_at(share: float):
        def progress(message: str, done: float, **figures: float) -> None:
            seen.append((done, figures))
            if done > share:
                raise KilledError

        return progress

    for share in (0.4, 0.7):
        with pytest.raises(KilledError):
            fit(TEXTS, TINY, state=FitState(path, "a", 0.0), progress=stop_at(share))
    assert fit(TEXTS, TINY, state=FitState(path, "a", 0.0)).fingerprint == fitted.fingerprint
    curve = [figures["bits_per_byte"] for _, figures in seen]
    assert curve[0] == pytest.approx(8, abs=0.1) and curve[-1] < 5
    steps = [round(done * TINY.steps) for done, _ in seen]
    assert steps == [0, 10, 20, 30, 40, 40, 50, 60]  # killed in step 40, and gone on from there


def test_patience_ends_a_fit_that_learns_its_text_by_heart(tmp_path):
    rng = np.random.default_rng(0)
    noise = [bytes(rng.choice(np.frombuffer(b"acgt", np.uint8), 600)) for _ in range(2)]
    options = replace(TINY, steps=200, patience=3)
    losses: list[float] = []

    def progress(message: str, done: float, **figures: float) -> None:
        losses.extend(value for name, value in figures.items() if name == "loss_aside")

    stopped = fit(noise, options, progress=progress)
    assert 4 <= len(losses) < 30 and min(losses) not in losses[-3:]  # of 50
    laid = laid_out(noise[:1], options.seq_len + 3)
    network = stopped.source.network.train()
    assert aside_loss(network, laid, options) == pytest.approx(min(losses), abs=1e-5)

    def kill(message: str, done: float, **figures: float) -> None:
        if done > 0.1:
            raise KilledError

    state = FitState(tmp_path / "state", "a", 0.0)
    with pytest.raises(KilledError):
        fit(noise, options, progress=kill, state=state)
    assert fit(noise, options, state=state).fingerprint == stopped.fingerprint
    with pytest.raises(ConfigError, match="two samples or more"):
        fit(noise[:1], options)


def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, LMPatch) and loaded.fingerprint == fitted.fingerprint
    for one, other in zip(fitted.encode_batch(TEXTS), loaded.encode_batch(TEXTS), strict=True):
        assert np.array_equal(one.patch_starts, other.patch_starts)
        assert loaded.decode(other) in TEXTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"dim": 16}}, "network"),
        ({"network": {**CONFIG.__dict__, "dim": 1 << 20}}, "dim is 1048576"),
        ({"network": {**CONFIG.__dict__, "n_layers": 3}}, "does not fit"),
        ({"network": {**CONFIG.__dict__, "dim": 20, "n_heads": 5}}, "does not fit"),
        ({"network": {**CONFIG.__dict__, "n_heads": 3}}, "multiple"),
        ({"network": None}, "network"),
        ({"threshold": None}, "threshold"),
        ({"threshold": 99}, "threshold"),
    ],
)
def test_damaged_folder(fitted, tmp_path, change, message):
    fitted.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(tmp_path)


def test_wrong_options():
    wrong = {
        "alone": {"method": "fixed"},
        "multiple of window": {"seq_len": 100},
        "lr is 2": {"lr": 2.0},
        "steps": {"steps": 0},
        "patience": {"patience": 99},
    }
    for message, options in wrong.items():
        with pytest.raises(ConfigError, match=message):
            FitOptions(**options)
