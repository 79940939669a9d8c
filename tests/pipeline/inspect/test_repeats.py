"""Duplicates and leaks against documents compared one by one."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from plait.pipeline.block import EncodedDocument
from plait.pipeline.inspect.count import StreamCounts, count_stream
from plait.pipeline.inspect.repeats import Part, find_repeats, held_out, shared, split
from plait.pipeline.split import Splitter
from plait.pipeline.stream import Stream
from plait.tokenizers.base import Encoded

from ..made_stream import document, random_shape, write_stream


def copied_stream(folder: Path, seed: int, share: float = 0.3) -> tuple[Stream, list]:
    """Some documents hold what an earlier one does, under a key of their own."""
    rng = np.random.default_rng(seed)
    made: list[EncodedDocument] = []
    for number in range(80):
        if made and rng.random() < share:
            made.append(replace(made[rng.integers(len(made))], key=f"copy{number}"))
        else:
            made.append(document(number, random_shape(rng, 20), rng))
    return write_stream(folder, [made[:30], made[30:]]), made


def content(d: EncodedDocument) -> tuple:
    latents = [None if e.latents is None else e.latents.tobytes() for _, e in d.spans]
    return tuple((t, tuple(e.ids.tolist())) for t, e in d.spans), *latents


def everything(stream: Stream, counts: StreamCounts) -> Part:
    return Part(stream, counts, np.arange(stream.documents))


def test_duplicates_are_counted_and_named(tmp_path: Path):
    stream, made = copied_stream(tmp_path, 0)
    found = find_repeats(stream, count_stream(stream))
    groups = Counter(map(content, made))
    several = {c: n for c, n in groups.items() if n > 1}
    assert found.documents == len(made) - len(groups) > 10
    assert found.groups == len(several)
    sizes = [g.documents for g in found.largest]
    assert sizes == sorted(several.values(), reverse=True)[:5]
    for group in found.largest:
        keys = [d.key for d in made if content(d) == content(first_with(made, group.keys[0]))]
        assert list(group.keys) == keys[:3] and group.documents == len(keys)
        assert group.tokens == sum(len(e.ids) for _, e in first_with(made, keys[0]).spans)


def first_with(made: list[EncodedDocument], key: str) -> EncodedDocument:
    return next(d for d in made if d.key == key)


def test_pictures_of_the_same_ids_and_other_latents_differ(tmp_path: Path):
    """The ids of continuous latents say nothing."""
    ids, latents = np.zeros(8, np.int64), np.ones((8, 3))
    pictures = [latents, latents / 2, latents, None, None]
    made = [
        EncodedDocument(key=f"d{i}", metadata={}, spans=[(1, Encoded(ids=ids, width=4, latents=x))])
        for i, x in enumerate(pictures)
    ]
    stream = write_stream(tmp_path, [made[:2], made[2:3], made[3:]])
    found = find_repeats(stream, count_stream(stream))
    assert [g.keys for g in found.largest] == [("d0", "d2"), ("d3", "d4")]


def test_a_run_s_own_split_is_looked_through(tmp_path: Path):
    stream, made = copied_stream(tmp_path, 1, share=0.6)
    counts = count_stream(stream)
    apart = Splitter(stream, seed=0, split="validation", validation=0.05).chosen(np.arange(80))
    trained = {content(d) for d, out in zip(made, apart, strict=True) if not out}
    leaked = [d.key for d, out in zip(made, apart, strict=True) if out and content(d) in trained]
    found = held_out(stream, counts)
    assert found is not None and found.found
    assert (found.documents, found.same_content) == (int(apart.sum()), len(leaked))
    assert found.same_key == 0 and list(found.keys) == leaked[:3]
    ours, others = split(stream, counts, seed=3, share=0.5)
    assert len(ours.numbers) + len(others.numbers) == 80
    assert shared([ours], [others]).same_content == sum(
        content(made[i]) in {content(made[j]) for j in others.numbers} for i in ours.numbers
    )


def test_documents_of_two_streams_are_compared_by_tokenizer_and_by_key(tmp_path: Path):
    stream, made = copied_stream(tmp_path / "a", 2)
    rng = np.random.default_rng(9)
    same_key = document(3, [("text", 9)], rng)
    other = write_stream(tmp_path / "b", [[replace(made[0], key="x"), same_key, made[5]]])
    a, b = count_stream(stream), count_stream(other)
    found = shared([everything(other, b)], [everything(stream, a)])
    assert (found.documents, found.same_content, found.same_key) == (3, 2, 2)
    assert found.keys == ("x", same_key.key, made[5].key)
    refitted = tuple(replace(t, fingerprint=f"{t.name}-b") for t in stream.tokenizers)
    third = write_stream(tmp_path / "c", [[replace(made[0], key="x")]], refitted)
    assert not shared([everything(third, count_stream(third))], [everything(stream, a)]).found


def test_nothing_is_held_out_of_one_document(tmp_path: Path):
    rng = np.random.default_rng(0)
    stream = write_stream(tmp_path, [[document(0, [("text", 5)], rng)]])
    counts = count_stream(stream)
    assert held_out(stream, counts) is None
    assert find_repeats(stream, counts).largest == ()
