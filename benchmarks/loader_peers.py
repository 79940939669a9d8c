"""The peers that are installed, each reading the same documents in a shuffled order.

Each writes the text corpus in its own format beside the stream, once. Those that do not pack share
one packer, which puts documents between <bos> and <eos> and cuts at row ends, so they are compared
on reading alone; the packer takes a copy of each piece.
"""

import importlib.util
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import BOS, EOS, PAD, Vocabulary

SPECIALS = 7
"""First id of text in the vocabulary of corpus.py."""

Epoch = Callable[[], Iterator[np.ndarray]]


def contenders(stream: Stream, batch_size: int, seq_len: int) -> dict[str, Epoch]:
    """Epochs of the peers that are installed."""
    assert Vocabulary(stream.tokenizers).start("text") == SPECIALS
    found: dict[str, Epoch] = {}
    for module, (name, documents) in PEERS.items():
        if _installed(module):
            make = documents(stream)
            found[name] = lambda make=make: pack(make(), batch_size, seq_len)
    return found


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def pack(documents: Iterable[np.ndarray], batch_size: int, seq_len: int) -> Iterator[np.ndarray]:
    """Documents of local ids one after the other, cut at row ends; the last batch is padded."""
    size = batch_size * seq_len
    out, at = np.empty(size, np.int64), 0
    for ids in documents:
        document = np.empty(len(ids) + 2, np.int64)
        document[0], document[-1] = BOS, EOS
        np.add(ids, SPECIALS, out=document[1:-1], casting="unsafe")
        start = 0
        while start < len(document):
            part = document[start : start + size - at]
            out[at : at + len(part)] = part
            start, at = start + len(part), at + len(part)
            if at == size:
                yield out.reshape(batch_size, seq_len)
                out, at = np.empty(size, np.int64), 0
    if at:
        out[at:] = PAD
        yield out.reshape(batch_size, seq_len)


def documents_of(stream: Stream) -> Iterator[np.ndarray]:
    """The ids of each document, in order."""
    for block in stream.blocks():
        ends = np.cumsum(block.spans[:, 3])[:-1]
        yield from np.split(block.ids.astype(np.uint16), ends)


def webdataset(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """Stock webdataset, one .npy member a document, shuffled in a buffer of 1,000."""
    import webdataset as wds

    folder = stream.path / "webdataset"
    if not folder.is_dir():
        _write_tars(stream, folder)
    shards = sorted(map(str, folder.glob("*.tar")))
    dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode()
    return lambda: (sample["npy"] for sample in dataset)


def _write_tars(stream: Stream, folder: Path) -> None:
    temporary = folder.with_suffix(".tmp")
    temporary.mkdir(exist_ok=True)
    numbered = enumerate(documents_of(stream))
    while shard := list(islice(numbered, 20_000)):
        path = temporary / f"{shard[0][0]:09d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, ids in shard:
                data = io.BytesIO()
                np.save(data, ids)
                info = tarfile.TarInfo(f"{number:09d}.npy")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    temporary.replace(folder)


def energon(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """Megatron-Energon over the tars of stock webdataset, no worker process, a buffer of 1,000."""
    from megatron import energon as library

    folder = stream.path / "energon"
    if not folder.is_dir():
        temporary = folder.with_suffix(".tmp")
        _write_tars(stream, temporary)
        shards = sorted(path.name for path in temporary.glob("*.tar"))
        parts: list[tuple[str, float]] = [("train", 1.0)]
        library.CrudeWebdataset.prepare_dataset(
            temporary, shards, split_parts_ratio=parts, workers=1
        )
        kind = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        (temporary / ".nv-meta" / "dataset.yaml").write_text(kind)
        temporary.replace(folder)

    @library.stateless
    def ids(sample: dict) -> bytes:
        return sample["npy"]

    class Documents(library.DefaultTaskEncoder):
        cookers: ClassVar = [library.Cooker(ids)]
        decoder = None

    def epoch() -> Iterator[np.ndarray]:
        alone = library.WorkerConfig(rank=0, world_size=1, num_workers=0)
        dataset = library.get_train_dataset(
            folder,
            worker_config=alone,
            batch_size=None,
            shuffle_buffer_size=1000,
            max_samples_per_sequence=None,
            task_encoder=Documents(),
            repeat=False,
        )
        return (np.load(io.BytesIO(npy)) for npy in library.get_loader(dataset))

    return epoch


def litdata(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """LitData's own chunks of documents, shuffled as it does by default."""
    from litdata import StreamingDataset
    from litdata.streaming.cache import Cache

    folder = stream.path / "litdata"
    if not folder.is_dir():
        temporary = folder.with_suffix(".tmp")
        cache = Cache(str(temporary), chunk_bytes="64MB")
        for number, ids in enumerate(documents_of(stream)):
            cache[number] = ids.astype(np.int64)
        cache.done()
        cache.merge()
        temporary.replace(folder)
    dataset = StreamingDataset(str(folder), shuffle=True)
    return lambda: map(np.asarray, dataset)


def mosaicml(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """MosaicML's MDS shards of documents, shuffled as it does by default."""
    from streaming import MDSWriter, StreamingDataset

    folder = stream.path / "mds"
    if not folder.is_dir():
        temporary = folder.with_suffix(".tmp")
        with MDSWriter(out=str(temporary), columns={"ids": "ndarray:uint16"}) as writer:
            for ids in documents_of(stream):
                writer.write({"ids": ids})
        temporary.replace(folder)
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=1)
    return lambda: (sample["ids"] for sample in dataset)


def megatron(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """Megatron-core's .bin and .idx, documents drawn from a permutation."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    prefix = stream.path / "megatron"
    if not prefix.with_suffix(".idx").is_file():
        builder = IndexedDatasetBuilder(str(prefix.with_suffix(".bin")), dtype=np.uint16)
        for ids in documents_of(stream):
            builder.add_document(ids, [len(ids)])
        builder.finalize(str(prefix.with_suffix(".idx")))
    dataset = IndexedDataset(str(prefix))
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    return lambda: (dataset[i] for i in order)


def grain(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """Grain over one flat file of ids, its global shuffle, its own threads."""
    import grain as library

    path = stream.path / "flat-documents.bin"
    ids = list(documents_of(stream))
    if not path.is_file():
        np.concatenate(ids).tofile(path)
    flat, ends = np.memmap(path, np.uint16, mode="r"), np.cumsum([0, *map(len, ids)])
    source = _FlatDocuments(flat, ends)
    return lambda: library.MapDataset.source(source).shuffle(seed=0).to_iter_dataset()


class _FlatDocuments:
    def __init__(self, flat: np.ndarray, ends: np.ndarray) -> None:
        self._flat, self._ends = flat, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return np.asarray(self._flat[self._ends[i] : self._ends[i + 1]])


def datatrove(stream: Stream) -> Callable[[], Iterable[np.ndarray]]:
    """Datatrove's file of tokens, read in windows of a fixed length; it keeps no documents."""
    from datatrove.utils.dataset import DatatroveFileDataset

    path, window = stream.path / "datatrove.ds", 512
    ids = np.concatenate(list(documents_of(stream)))
    if not path.is_file():
        ids.tofile(path)
    dataset = DatatroveFileDataset(str(path), seq_len=window - 1)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    rest = ids[len(dataset) * window :]
    return lambda: chain((dataset[i]["input_ids"].numpy() for i in order), [rest])


PEERS: dict[str, tuple[str, Callable[[Stream], Callable[[], Iterable[np.ndarray]]]]] = {
    "webdataset": ("stock WebDataset", webdataset),
    "litdata": ("LitData", litdata),
    "streaming": ("MosaicML Streaming", mosaicml),
    "grain": ("Grain", grain),
    "datatrove": ("Datatrove, 512 tokens", datatrove),
    "megatron.energon": ("Megatron-Energon", energon),
    "megatron.core": ("Megatron-core bin/idx", megatron),
}
"""By module: name, and what makes the documents of an epoch."""
