"""Each alert is given for its cause, and not without it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from plait.pipeline.block import EncodedDocument
from plait.pipeline.inspect.alerts import mixture_alerts
from plait.pipeline.inspect.mixture_shares import StreamShare
from plait.pipeline.inspect.stream_report import look
from plait.pipeline.stream import Stream

from ..made_stream import ALL, document, text_stream, write_stream

RNG = np.random.default_rng(0)
SMALL = tuple(replace(info, vocab_size=20) for info in ALL)


def alerts(stream: Stream, seq_len: int = 256) -> list[str]:
    return look(Stream(stream.path), seq_len=seq_len).alerts


def with_alert(stream: Stream, words: str, **options: int) -> str:
    found = [a for a in alerts(stream, **options) if words in a]
    assert len(found) == 1, found
    return found[0]


def written(folder: Path, shards: list[list[EncodedDocument]], tokenizers=ALL) -> Stream:
    return write_stream(folder, shards, tokenizers)


def change_manifest(stream: Stream, change: Callable[[dict], None]) -> None:
    manifest = json.loads((stream.path / "stream.json").read_text())
    change(manifest)
    (stream.path / "stream.json").write_text(json.dumps(manifest))


def even_text(count: int, start: int = 0) -> list[EncodedDocument]:
    """Documents of the right length for rows of 256, which use every id of a small vocabulary."""
    found = []
    for number in range(start, start + count):
        made = document(number, [("text", 30 + number % 33)], RNG)
        _, span = made.spans[0]
        found.append(replace(made, spans=[(0, replace(span, ids=RNG.permutation(span.ids) % 20))]))
    return found


def test_a_sound_stream_has_none(tmp_path: Path):
    stream = written(tmp_path, [even_text(120)], SMALL[:1])
    assert alerts(stream) == []


def test_codes_that_are_never_used(tmp_path: Path):
    stream = text_stream(tmp_path, [[100] * 3])
    found = with_alert(stream, "text: ")
    assert "of 1,000 codes are never used. Fit a smaller" in found
    assert sum("no token of it" in a for a in alerts(stream)) == 3


def test_a_modality_missing_from_a_shard(tmp_path: Path):
    """Of the same source, and where one should expect it."""
    paired = [document(i, [("text", 9), ("image", 8)], RNG) for i in range(60)]
    plain = [document(i, [("text", 9)], RNG) for i in range(60, 90)]
    stream = written(tmp_path, [paired[:30], paired[30:], plain, plain[:1]])
    found = with_alert(stream, "is missing from")
    assert found.startswith("image is missing from shard-000002, though other shards of the same")
    change_manifest(stream, lambda m: [s.update(source=n // 2) for n, s in enumerate(m["shards"])])
    assert not [a for a in alerts(stream) if "missing" in a]


def test_copies_and_what_a_run_would_hold_out_of_them(tmp_path: Path):
    made = even_text(60)
    stream = written(tmp_path, [made, [replace(d, key=f"{d.key}x") for d in made]])
    found = with_alert(stream, "are copies of others")
    assert found.startswith("60 documents (50.0%) are copies of others. `plait shard --dedup")
    assert "hold the same as a training document" in with_alert(stream, "the 5% that a run")


def test_documents_of_the_validation_stream_in_this_one(tmp_path: Path):
    made = even_text(120)
    stream = written(tmp_path / "a", [made])
    held_out = written(tmp_path / "b", [[*made[:2], *even_text(9, 500)]])
    found = look(stream, seq_len=256, validation=tmp_path / "b")
    assert (found.validation.documents, found.validation.same_content) == (11, 2)
    assert found.alerts[0].startswith("Of 11 documents in the validation stream, 2 hold the same")
    assert "2 have the source and key of one (d0, d1)" in found.alerts[0]
    other = look(
        held_out, seq_len=256, validation=written(tmp_path / "c", [even_text(9, 900)]).path
    )
    assert not [a for a in other.alerts if "validation stream" in a]


def test_rejected_samples_but_not_filtered_ones(tmp_path: Path):
    stream = written(tmp_path, [even_text(97)])
    lines = [json.dumps({"reason": "empty text"})] * 3
    (tmp_path / "rejected.jsonl").write_text("\n".join(lines))
    assert with_alert(stream, "rejected").startswith("3 of 100 samples (3.0%) were rejected.")
    lines = [json.dumps({"reason": "filtered: too short"})] * 3
    (tmp_path / "rejected.jsonl").write_text("\n".join(lines))
    assert not [a for a in alerts(stream) if "rejected" in a]


def test_padding_and_documents_longer_than_a_row(tmp_path: Path):
    pictures = [document(i, [("image", 160)], RNG) for i in range(30)]
    stream = written(tmp_path, [pictures])
    assert with_alert(stream, "filled").startswith("Packed rows are only 64.1% filled; the rest")
    found = with_alert(text_stream(tmp_path / "t", [[300] * 30]), "longer than a row")
    assert found.startswith("100% of the documents are longer than a row of 256 tokens and are cut")
    assert "Rows of 512 keep 95% whole" in found


def test_spans_that_something_cut(tmp_path: Path):
    lengths = [10 + i for i in range(60)]
    assert not [a for a in alerts(text_stream(tmp_path / "a", [lengths])) if "cuts them" in a]
    stream = text_stream(tmp_path / "b", [[*lengths, *[70] * 30]])
    assert with_alert(stream, "cuts them").startswith("text: 33.3% of the spans have exactly 70")


def test_documents_in_quarantine_come_first(tmp_path: Path):
    stream = text_stream(tmp_path, [[100] * 3])
    entry = {"name": "shard-000009", "documents": 7}
    change_manifest(stream, lambda m: m.update(quarantined=[entry]))
    assert alerts(stream)[0] == "7 documents are in quarantine (shard-000009); see `plait verify`."


def test_a_mixture_that_drifts():
    one = StreamShare(
        name="a", weight=0.5, rows=0.5, tokens=0.529, documents=0.5, epochs=1.0, fill=0.99
    )
    two = replace(one, name="b", tokens=0.471, fill=0.88)
    found = list(mixture_alerts([one, two]))
    assert len(found) == 2
    assert found[1].startswith("b has 47.1% of the tokens for a weight of 50.0%")
    assert "88.0% filled" in found[1] and "weigh it by 0.531" in found[1]
    assert not list(mixture_alerts([replace(one, tokens=0.519), replace(two, tokens=0.481)]))
