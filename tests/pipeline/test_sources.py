"""What holds for every kind of source, and the way of each through a shard job."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.find import find_sources, kinds, open_kind, open_sources
from plait.pipeline.shard import shard
from plait.pipeline.source import Rejected
from plait.pipeline.stream import Stream
from plait.tokenizers import byte_patch
from plait.tokenizers.base import Encoded, Tokenizer

from .made_sources import MAKERS, REJECTED


class Small(Tokenizer):
    """A few ids for a picture or a sound."""

    vocab_size = 256

    def __init__(self, modality):
        self.modality = modality

    def encode_batch(self, samples):
        if self.modality == "speech":
            return [Encoded(ids=np.array([len(s.samples) % 256])) for s in samples]
        return [Encoded(ids=np.asarray(s.resize((2, 2)))[..., 0].reshape(-1)) for s in samples]

    def decode(self, encoded):
        return None

    def config(self):
        return {"modality": self.modality}

    def files(self):
        return {}

    @classmethod
    def from_files(cls, config, files):
        return cls(config["modality"])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind) / "set") for kind, make in MAKERS.items()}


def opened(made, kind):
    (source,) = open_sources(made[kind], kind)
    return source


def test_there_is_a_maker_for_each_kind():
    assert sorted(MAKERS) == kinds() == sorted(REJECTED)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_keys_are_unique_and_sources_travel(made, kind):
    source = opened(made, kind)
    found = list(source.read(0, len(source)))
    assert len(found) == len(source) > 0
    assert len({sample.key for sample in found}) == len(found)
    for sample in found:
        assert isinstance(sample, Rejected) or json.dumps(sample.metadata, allow_nan=False)
    assert list(pickle.loads(pickle.dumps(source)).read(0, len(source))) == found
    assert list(source.read(3, 3)) == list(source.read(len(source), len(source))) == []


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_kinds_are_recognised(made, kind):
    if kind != "bytes":
        assert kind in {s.kind for s in find_sources(made[kind]).sources}
    assert open_kind(kind, opened(made, kind).path, made[kind].parent).kind == kind


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_source_is_described_by_what_it_holds(made, kind, tmp_path):
    shutil.copytree(made[kind] if made[kind].is_dir() else made[kind].parent, tmp_path / "copy")
    inside = "" if made[kind].is_dir() else made[kind].name
    copy = tmp_path / "copy" / inside
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    (source,) = open_sources(copy, kind)
    described, before = source.describe(), opened(made, kind).describe()
    assert described.pop("path") != before.pop("path")
    assert described == before
    keys = [s.key for s in source.read(0, len(source))]
    assert keys == [s.key for s in opened(made, kind).read(0, len(source))]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MAKERS)), st.data())
def test_a_range_is_a_slice_of_all(made, kind, data):
    source = opened(made, kind)
    whole = list(source.read(0, len(source)))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert list(source.read(start, stop)) == whole[start:stop]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_every_kind_is_sharded(made, kind, tmp_path, monkeypatch):
    byte = byte_patch.fit([b"x"], byte_patch.FitOptions())
    tokenizers = {"bytes": byte, "image": Small("image"), "speech": Small("speech")}
    for module in ("job", "stream"):
        monkeypatch.setattr(
            f"plait.pipeline.{module}.load_tokenizer", lambda folder: tokenizers[Path(folder).name]
        )
    out = tmp_path / "out"
    summary = shard(
        [made[kind]], out, [*map(Path, tokenizers)], source=kind, samples_per_shard=40, workers=1
    )
    count = len(opened(made, kind))
    assert (summary.samples, summary.documents) == (count, count - REJECTED[kind])
    listed = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(listed) == REJECTED[kind] and all(e["reason"] and e["key"] for e in listed)
    stream = Stream(out)
    keys = [stream.document(i).key for i in range(stream.documents)]
    read = [sample.key for sample in opened(made, kind).read(0, count)]
    assert sorted([*keys, *(e["key"] for e in listed)]) == sorted(read)
