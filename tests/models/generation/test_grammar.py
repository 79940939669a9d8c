import random

import pytest

from plait.models.generation.grammar import Part, Walk
from plait.pipeline.vocabulary import EOS

from ..made_spans import CODEBOOKS, CODES, GRID, spans


def walk_at_random(walk: Walk, seed: int) -> list[int]:
    """Take allowed ids at random, stops more often than their share; the ids in order."""
    generator, taken = random.Random(seed), []
    while not walk.done:
        allowed = walk.allowed()
        assert all(len(ids) for ids in allowed)
        taken.append(generator.choice(generator.choice(allowed)))
        walk.take(taken[-1])
        assert len(taken) < 200
    return taken


def check(part: Part, vocabulary) -> None:
    """A part is what its tokenizer can decode."""
    assert part.ids and max(part.ids) < vocabulary.info(part.name).vocab_size
    if part.name == "image":
        assert len(part.ids) == GRID
    if part.name == "speech":
        assert len(part.ids) % CODEBOOKS == 0 and len(part.ids) <= 8
        assert all(id_ // CODES == n % CODEBOOKS for n, id_ in enumerate(part.ids))


@pytest.mark.parametrize("name", ["text", "image", "speech"])
def test_one_span_is_whole_and_no_longer_than_it_may(name, vocabulary):
    lengths = set()
    for seed in range(40):
        walk = Walk(spans(vocabulary)[name])
        walk_at_random(walk, seed)
        (part,) = walk.parts
        assert part.name == name
        check(part, vocabulary)
        lengths.add(len(part.ids))
    assert max(lengths) == {"text": 9, "image": GRID, "speech": 8}[name]
    assert (len(lengths) > 1) == (name != "image")


def test_free_walks_are_whole_documents(vocabulary):
    names, endings = set(), set()
    for seed in range(60):
        walk = Walk.free(spans(vocabulary), max_tokens=25)
        taken = walk_at_random(walk, seed)
        for part in walk.parts:
            check(part, vocabulary)
        names |= {part.name for part in walk.parts}
        endings.add(taken[-1] == EOS)
        assert taken[0] != EOS and EOS not in taken[:-1]
        assert len(taken) <= 25 + 2 + 8, "a part that began before 25 tokens may end"
        written = [(p.name, vocabulary.to_global(p.name, p.ids).tolist()) for p in walk.parts]
        marked = []
        for name, ids in written:
            begin, end = vocabulary.begin(name), vocabulary.end(name)
            marked += ids if begin is None else [begin, *ids, end]
        assert marked == [token for token in taken if token != EOS]
    assert names == {"text", "image", "speech"} and endings == {True, False}


def test_without_text_a_free_walk_is_of_marked_spans(vocabulary):
    own = {name: span for name, span in spans(vocabulary).items() if name != "text"}
    for seed in range(10):
        walk = Walk.free(own, max_tokens=25)
        assert walk.allowed()[0].start == vocabulary.begin("image")
        walk_at_random(walk, seed)
        assert {part.name for part in walk.parts} <= {"image", "speech"} and walk.parts
