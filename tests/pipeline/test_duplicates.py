"""Exact deduplication: the first in job order is kept, for any workers and after any kill."""

import json
import os
import signal
import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.pipeline import duplicates
from plait.pipeline.duplicates import find_repeats
from plait.pipeline.engines import Engine
from plait.pipeline.filters import Filters
from plait.pipeline.shard import shard
from plait.pipeline.stream import Stream

from .conftest import tree, write_rows

DOCUMENTS = Filters(deduplicate="documents")
MEDIA = Filters(deduplicate="media")


def repeating_sources(folder, rows=120):
    """Two sources with many rows that are the same, within and between them."""
    rng = np.random.default_rng(5)
    for name in ("a", "b"):
        texts = [f"text {n} " * 20 for n in rng.integers(0, 60, rows).tolist()]
        named = [{"id": f"{name}{i}", "text": text} for i, text in enumerate(texts)]
        write_rows(folder / f"{name}.jsonl", named)
    return [folder / "a.jsonl", folder / "b.jsonl"]


def expected_documents(sources):
    """Keys of the rows whose text did not come before, by a plain loop."""
    seen, kept = set(), []
    for source in sources:
        for number, line in enumerate(source.read_text().splitlines(), 1):
            row = json.loads(line)
            if row["text"] not in seen:
                kept.append(f"{row['id']}#{number}")
            seen.add(row["text"])
    return kept


def keys(out):
    stream = Stream(out)
    return [stream.document(i).key for i in range(stream.documents)]


def test_the_first_is_kept_for_any_number_of_workers(tmp_path, bytes_tokenizer, monkeypatch):
    monkeypatch.setattr("plait.pipeline.engines.SMALL_JOB", 0)
    monkeypatch.setattr(duplicates, "SMALL_JOB", 0)
    sources = repeating_sources(tmp_path)
    options = {"samples_per_shard": 20, "filters": DOCUMENTS}
    one = shard(sources, tmp_path / "one", [bytes_tokenizer], workers=1, **options)
    shard(sources, tmp_path / "three", [bytes_tokenizer], workers=3, **options)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    kept = expected_documents(sources)
    assert keys(tmp_path / "one") == kept and len(kept) < 70
    assert one.rejected == {"filtered, duplicate": 240 - len(kept)}
    listed = map(json.loads, (tmp_path / "one" / "rejected.jsonl").read_text().splitlines())
    firsts = {f"filtered, duplicate: of {json.loads(json.dumps(k))}" for k in kept}
    assert {entry["reason"].rpartition(" in ")[0] for entry in listed} <= firsts


def killed_at(step, *arguments, **options):
    """In a child process: run the job, and kill it at flush number `step`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left, flush = [step], os.fsync

    def counted(descriptor):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    try:
        os.fsync = counted
        shard(*arguments, **options)
        os._exit(0)
    finally:
        os._exit(7)


def test_killed_anywhere_and_repeated_gives_the_same_bytes(tmp_path, bytes_tokenizer):
    sources = repeating_sources(tmp_path, 40)
    options = {"samples_per_shard": 20, "filters": DOCUMENTS}
    shard(sources, tmp_path / "whole", [bytes_tokenizer], **options)
    for step in range(0, 200, 5):
        out = tmp_path / f"killed-{step}"
        status = killed_at(step, sources, out, [bytes_tokenizer], **options)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        shard(sources, out, [bytes_tokenizer], **options)
        assert tree(out) == tree(tmp_path / "whole")
    assert 30 < step < 195


def test_a_hashing_process_that_dies_leaves_its_work_to_the_job(
    tmp_path, bytes_tokenizer, monkeypatch
):
    monkeypatch.setattr(duplicates, "SMALL_JOB", 0)
    monkeypatch.setattr("plait.pipeline.engines.SMALL_JOB", 0)
    monkeypatch.setattr(duplicates, "_hash_tasks", os._exit)
    sources = repeating_sources(tmp_path)
    options = {"samples_per_shard": 40, "filters": DOCUMENTS, "workers": 2}
    shard(sources, tmp_path / "out", [bytes_tokenizer], **options)
    assert keys(tmp_path / "out") == expected_documents(sources)


def test_duplicates_are_found_before_a_slurm_script_is_written(tmp_path, bytes_tokenizer):
    engine = Engine(name="slurm", script=tmp_path / "s.sbatch")
    options = {"samples_per_shard": 20, "filters": DOCUMENTS, "engine": engine}
    shard(repeating_sources(tmp_path), tmp_path / "out", [bytes_tokenizer], **options)
    assert (tmp_path / "s.sbatch").is_file()
    assert list((tmp_path / "out" / "job").glob("dropped-*.json"))


def pictures(folder, shades):
    folder.mkdir()
    for number, shade in enumerate(shades):
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(folder / f"{number}.png")


def test_media(tmp_path, sample_tokenizers):
    """Documents share pictures: one that is left out does not own any of its own."""
    pictures(tmp_path / "set", [10, 20, 30, 10, 40])
    documents = [[0], [0, 1], [1], [2, 2], [3], [2, 4], [4]]
    rows = [
        {
            "id": f"d{i}",
            "segments": [f"text {i}", *({"type": "image", "path": f"{n}.png"} for n in d)],
        }
        for i, d in enumerate(documents)
    ]
    source = write_rows(tmp_path / "set" / "t.jsonl", rows)
    tokenizers = [sample_tokenizers / "text", sample_tokenizers / "image"]
    summary = shard([source], tmp_path / "out", tokenizers, filters=MEDIA)
    assert keys(tmp_path / "out") == ["d0#1", "d2#3", "d3#4", "d6#7"]
    assert summary.rejected == {"filtered, duplicate image": 3}
    listed = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    found = {entry["key"]: entry["reason"] for entry in listed}
    assert found["d4#5"] == f"filtered, duplicate image: of d0#1 in {source}"
    summary = shard([source], tmp_path / "documents", tokenizers, filters=DOCUMENTS)
    assert summary.documents == 7


def test_a_text_file_is_the_same_as_a_row_of_its_text(tmp_path, bytes_tokenizer):
    (tmp_path / "texts").mkdir()
    for name, text in (("a", "hello"), ("b", "hello"), ("c", "other"), ("d", " "), ("e", " ")):
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    (tmp_path / "texts" / "f.txt").write_bytes(b"\xff")  # unreadable, twice
    (tmp_path / "texts" / "g.txt").write_bytes(b"\xff")
    rows = write_rows(tmp_path / "t.jsonl", [{"text": "other"}, {"text": ""}, {"text": ""}, "{\n"])
    out = tmp_path / "out"
    summary = shard([tmp_path / "texts", rows], out, [bytes_tokenizer], filters=DOCUMENTS)
    assert keys(out) == ["a.txt", "c.txt", "d.txt"]
    assert summary.rejected["filtered, duplicate"] == 3 and summary.rejected["empty text"] == 2
    assert summary.rejected["not UTF-8"] == 2


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=30),
    collide=st.booleans(),
)
def test_repeats_are_those_of_a_plain_loop(documents, collide):
    """Also where hashes are the same in one half."""
    flat = [(h, i, kind) for i, d in enumerate(documents) for kind, h in enumerate(d)]
    hashes = np.array([(7 if collide else h * h, h) for h, _, _ in flat], np.uint64).reshape(-1, 2)
    samples, kinds = (np.array([row[c] for row in flat], np.int64) for c in (1, 2))
    owner, expected = {}, []
    for i, d in enumerate(documents):
        hit = next(((owner[h], kind) for kind, h in enumerate(d) if h in owner), None)
        if hit:
            expected.append((i, *hit))
        else:
            owner.update(dict.fromkeys(d, i))
    assert list(find_repeats(hashes, samples, kinds)) == expected
