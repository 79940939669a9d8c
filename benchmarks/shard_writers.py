"""Ways to write a corpus of tokenized documents, plait's and those of the peers that are installed.

Each takes a corpus and an empty folder, and leaves a dataset there; its `read` gives the ids of
each document back, in order. All get the ids as one array and the lengths, and cut it themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from plait.pipeline.block import EncodedDocument
from plait.pipeline.shard_writer import ShardInfo, ShardWriter
from plait.pipeline.spans import LENGTH
from plait.tokenizers.base import Encoded

SHARD_DOCUMENTS = 100_000
"""Documents of one of plait's shards."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Documents back to back."""

    name: str
    ids: np.ndarray
    """Uint16 [n]."""
    lengths: np.ndarray
    keys: list[str]

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """Key and ids of each document."""
        first = 0
        for key, length in zip(self.keys, self.lengths.tolist(), strict=True):
            yield key, self.ids[first : first + length]
            first += length


@dataclass(frozen=True)
class Writer:
    """One way to write."""

    name: str
    needs: str
    """The module without which it is left out."""
    write: Callable[[Corpus, Path], None]
    read: Callable[[Path], Iterator[np.ndarray]]

    @property
    def installed(self) -> bool:
        """Whether it can run here."""
        return find_spec(self.needs) is not None


def plait_runs(corpus: Corpus, folder: Path) -> None:
    """`ShardWriter.add_many`."""
    ends = np.concatenate([[0], np.cumsum(corpus.lengths)])
    for number, a in enumerate(range(0, len(corpus.lengths), SHARD_DOCUMENTS)):
        b = min(a + SHARD_DOCUMENTS, len(corpus.lengths))
        writer = _shard_writer(folder, number)
        writer.add_many(corpus.ids[ends[a] : ends[b]], corpus.lengths[a:b], corpus.keys[a:b])
        writer.finish()


def plait_documents(corpus: Corpus, folder: Path) -> None:
    """`ShardWriter.add`."""
    writer = _shard_writer(folder, 0)
    for count, (key, ids) in enumerate(corpus.documents()):
        if count and count % SHARD_DOCUMENTS == 0:
            writer.finish()
            writer = _shard_writer(folder, count // SHARD_DOCUMENTS)
        writer.add(EncodedDocument(key=key, metadata={}, spans=[(0, Encoded(ids=ids))]))
    writer.finish()


def read_plait(folder: Path) -> Iterator[np.ndarray]:
    """The blocks of the shards, after their checksums."""
    from plait.pipeline.shard_reader import ShardReader

    for path in sorted(folder.glob("*.tar")):
        reader = ShardReader(folder, _info(path))
        for number in range(len(reader.index.blocks)):
            block = reader.block(number)
            yield from np.split(block.ids, np.cumsum(block.spans[:-1, LENGTH]))


def webdataset_members(corpus: Corpus, folder: Path) -> None:
    """Stock `webdataset.ShardWriter`, one .npy member a document."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=SHARD_DOCUMENTS, verbose=0) as w:
        for key, ids in corpus.documents():
            w.write({"__key__": key, "npy": ids})


def read_webdataset(folder: Path) -> Iterator[np.ndarray]:
    """Stock `webdataset.WebDataset`."""
    import webdataset

    paths = sorted(str(p) for p in folder.glob("*.tar"))
    for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode():
        yield sample["npy"]


def mosaicml(corpus: Corpus, folder: Path) -> None:
    """MosaicML Streaming's `MDSWriter`, without hashes, as by default."""
    from streaming import MDSWriter

    columns = {"key": "str", "ids": "ndarray:uint16"}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for key, ids in corpus.documents():
            writer.write({"key": key, "ids": ids})


def read_mosaicml(folder: Path) -> Iterator[np.ndarray]:
    """Its `LocalDataset`."""
    from streaming import LocalDataset

    dataset = LocalDataset(str(folder / "mds"))
    yield from (dataset[i]["ids"] for i in range(len(dataset)))


def megatron(corpus: Corpus, folder: Path) -> None:
    """Megatron-core's `IndexedDatasetBuilder`, which keeps no keys."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(folder / "text.bin"), dtype=np.uint16)
    for _, ids in corpus.documents():
        builder.add_item(torch.from_numpy(ids))
        builder.end_document()
    builder.finalize(str(folder / "text.idx"))


def read_megatron(folder: Path) -> Iterator[np.ndarray]:
    """Its `IndexedDataset`."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(folder / "text"))
    yield from (dataset[i] for i in range(len(dataset)))


def _shard_writer(folder: Path, number: int) -> ShardWriter:
    names = {"tokenizers": ["text"], "modalities": ["text"]}
    return ShardWriter(folder, f"shard-{number:06d}", source="made", **names)


def _info(path: Path) -> ShardInfo:
    """A shard's entry from its files, for there is no manifest here."""
    import xxhash

    from plait.pipeline.index import decode_index

    data = path.with_suffix(".idx").read_bytes()
    index = decode_index(data, str(path))
    return ShardInfo(
        name=path.stem,
        documents=index.documents,
        tokens={},
        spans={},
        bytes=path.stat().st_size,
        checksum="",
        index_bytes=len(data),
        index_checksum=xxhash.xxh3_128_hexdigest(data),
    )


WRITERS = (
    Writer("plait, add_many", "plait", plait_runs, read_plait),
    Writer("plait, add", "plait", plait_documents, read_plait),
    Writer("webdataset", "webdataset", webdataset_members, read_webdataset),
    Writer("mosaicml-streaming", "streaming", mosaicml, read_mosaicml),
    Writer("megatron-core", "megatron", megatron, read_megatron),
)
