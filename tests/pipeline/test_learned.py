"""Spans that are read and not learned, against a label for each place of each document."""

from dataclasses import replace

import numpy as np
import pytest

from plait.pipeline import cli
from plait.pipeline.block import EncodedDocument
from plait.pipeline.learned import Learned
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ConfigError

from .conftest import write_rows
from .made_stream import ALL, document, random_shape, write_stream


def made(number: int, rng: np.random.Generator) -> EncodedDocument:
    """A document whose column `roles` says which spans are learned; every fifth has none."""
    found = document(number, random_shape(rng, 30), rng)
    roles = rng.random(len(found.spans)) < 0.5
    return replace(found, metadata={"roles": roles.tolist()} if number % 5 else {"n": 1})


def labels(doc: EncodedDocument, learned: Learned) -> list[bool]:
    """Whether each place of a document is learned, <bos> and <eos> too."""
    found, flag = [False], True
    for number, (kind, encoded) in enumerate(doc.spans):
        flag = ALL[kind].modality not in learned.mask
        if learned.learn == "last":
            flag &= number == len(doc.spans) - 1
        elif learned.learn == "roles" and "roles" in doc.metadata:
            flag &= doc.metadata["roles"][number]
        markers = 0 if ALL[kind].modality == "text" else 2
        found += [flag] * (len(encoded.ids) + markers)
    return [*found, flag]


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
@pytest.mark.parametrize(
    "learned",
    [
        Learned(mask=("text",)),
        Learned(mask=("image", "bytes")),
        Learned(learn="last"),
        Learned(learn="roles"),
        Learned(mask=("speech",), learn="roles"),
    ],
    ids=str,
)
def test_targets_are_the_places_that_are_learned(packing, learned, tmp_path):
    rng = np.random.default_rng(3)
    shards = [[made(40 * s + i, rng) for i in range(40)] for s in range(2)]
    stream = write_stream(tmp_path / "stream", shards)
    documents = {d.key: d for shard in shards for d in shard}
    options = {"seq_len": 48, "packing": packing, "cut": ("text", "speech", "bytes")}
    rows, plain = Rows(stream, **options, learned=learned), Rows(stream, **options)
    assert rows.fingerprint == plain.fingerprint
    repeated = targets = 0
    for i in range(len(rows)):
        row, whole = rows[i], plain[i]
        assert (row.tokens == whole.tokens).all() and (row.document == whole.document).all()
        for number, (_, which) in enumerate(rows.documents_of(i)):
            here = np.flatnonzero(row.document == number)
            doc = documents[stream.document(which).key]
            flags, start = labels(doc, learned), int(row.position[here[0]])
            again = is_repeated(row.tokens[here], doc, start, rows)
            repeated += again
            wanted = flags[start + 1 - again : start + len(here) - again]
            assert row.loss_mask[here].tolist() == [*wanted, False]
            targets += sum(wanted)
    assert 0 < targets < sum(plain[i].loss_mask.sum() for i in range(len(rows)))
    assert (repeated > 0) == (packing == "best_fit"), "a cut span's begin marker came again"
    batch = rows.batch(range(4))
    assert batch.loss_mask_BT.tolist() == [rows[i].loss_mask.tolist() for i in range(4)]


def is_repeated(tokens: np.ndarray, doc: EncodedDocument, start: int, rows: Rows) -> bool:
    """Whether a piece begins with a marker that the document does not have there."""
    place = 1
    for kind, encoded in doc.spans:
        begin = rows.vocabulary.begin(ALL[kind].name)
        end = place + len(encoded.ids) + (begin is not None)
        if begin is not None and place < start < end and tokens[0] == begin:
            return True
        place = end + (begin is not None)
    return False


def test_answers_of_a_file_of_questions(sample_tokenizers, tmp_path):
    """Two columns of text are two spans; the answer and <eos> are learned."""
    source = write_rows(
        tmp_path / "data" / "qa.jsonl",
        [{"q": f"what is the number {i}?", "a": f"it is {i}", "learn": [0, 1]} for i in range(20)],
    )
    words = [
        "--tokenizer",
        str(sample_tokenizers / "text"),
        "--field",
        "text=q",
        "--field",
        "text=a",
    ]
    assert cli.main(["shard", str(source), "--out", str(tmp_path / "stream"), *words]) == 0
    stream = Stream(tmp_path / "stream")
    masks = []
    for learn in ("last", "learn"):
        batch = Rows(stream, seq_len=64, learned=Learned(learn=learn)).batch(range(2))
        masks.append(batch.loss_mask_BT.tolist())
        local = batch.targets_BT[batch.loss_mask_BT].numpy() - 3
        ends = np.flatnonzero(local < 0).tolist()
        answers = [
            stream.tokenizer("text").decode(Encoded(ids=part[part >= 0]))
            for part in np.split(local, [e + 1 for e in ends])
            if len(part)
        ]
        assert answers and all(answer.strip().startswith("it is") for answer in answers)
    assert masks[0] == masks[1]


def test_wrong_use_says_what_there_is(tmp_path):
    rng = np.random.default_rng(0)
    short = replace(made(1, rng), metadata={"roles": [True] * 9})
    stream = write_stream(tmp_path / "stream", [[short, made(2, rng)]])
    with pytest.raises(ConfigError, match="no modality 'video'; there is text, image, speech"):
        Rows(stream, seq_len=48, learned=Learned(mask=("video",)))
    with pytest.raises(ConfigError, match=r"'role': .* no such column .* the first 100 have roles"):
        Rows(stream, seq_len=48, learned=Learned(learn="role"))
    rows = Rows(stream, seq_len=48, learned=Learned(learn="roles"))
    with pytest.raises(ConfigError, match=r"document d1: .* a list of \d true or false"):
        rows.batch(range(len(rows)))
