"""Brings a damaged stream to rights: what can be is rebuilt, the rest set aside or made again.

An index follows from its tar, and a tar's headers and padding from its index, so each is rebuilt
while the other is whole; the checksums in `stream.json` say if it is as before. A shard beyond
that is moved to OUT/quarantine and taken out of `stream.json`, which keeps its entry under
`quarantined`. Repeating the job makes exactly the shards that are missing.
"""

import json
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import xxhash

from plait.pipeline.duplicates import mark_duplicates
from plait.pipeline.index import encode_index, rebuild_index
from plait.pipeline.job import Job, run_task
from plait.pipeline.job_files import QUARANTINE, total_of, write_manifest
from plait.pipeline.shard_check import Problem, check_shard, frame
from plait.pipeline.shard_reader import ShardReader
from plait.pipeline.shard_writer import ShardInfo, commit, discard, open_temporary, write_file
from plait.pipeline.store import Folder
from plait.pipeline.stream import Stream, shard_info
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ResumeError, ShardError


def repair(folder: Path, problems: Iterable[Problem]) -> list[str]:
    """Repair or set aside the shards of a stream that have problems; says of each what was done."""
    done = []
    for name in sorted({p.shard for p in problems if p.shard}):
        stream = Stream(folder)
        number = [info.name for info in stream.shards].index(name)
        repaired = mend(folder, stream.shards[number])
        left, _ = check_shard(Stream(folder), number)
        if left:
            quarantine(folder, name, left[0].problem)
            done.append(f"{name}: moved to {folder / QUARANTINE}")
        else:
            done.append(f"{name}: {repaired or 'nothing is wrong with it any more'}")
    _move_aside(folder)
    return done


def restore(job: Job, tokenizers: Sequence[Tokenizer], workers: int) -> int:
    """Make the shards of a finished job that are missing or in quarantine again; says how many.

    Only in a local folder. Raises ResumeError if one comes out as another one than it was.
    """
    if not isinstance(job.store, Folder):
        return 0
    out = job.store.path
    manifest = _read(out)
    lost = [entry for entry in manifest["shards"] if not _is_there(out, entry)]
    lost += manifest.get("quarantined", [])
    if lost and job.filters.deduplicate != "no":
        mark_duplicates(job, workers)
    tasks = {task.shard: task for task in job.tasks()} if lost else {}
    for entry in lost:
        shard = run_task(job, tokenizers, tasks[entry["name"]]).shard
        if shard is None or not asdict(shard).items() <= entry.items():
            for path in _files(out, entry["name"]):
                path.unlink(missing_ok=True)
            raise ResumeError(
                f"{out}: {entry['name']}, made again, is another one than before: a file of "
                f"{job.sources[entry['source']].path} or plait has changed; delete the folder to "
                "begin again, or leave the shard in quarantine (`plait verify --repair`)"
            )
        _readmit(out, entry["name"])
    return len(lost)


def mend(folder: Path, info: ShardInfo) -> str:
    """Rebuild a shard's index or tar from the other; says what was done, nothing if it cannot."""
    path = folder / f"{info.name}.tar"
    if not path.is_file() or path.stat().st_size != info.bytes:
        return ""
    with path.open("rb") as file:
        tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if xxhash.xxh3_128_hexdigest(tar) == info.checksum:
        return _mend_index(folder, info, tar)
    return _mend_tar(folder, info, tar)


def _mend_index(folder: Path, info: ShardInfo, tar: memoryview) -> str:
    try:
        data = encode_index(rebuild_index(tar, info.name, info.name))
    except ShardError:
        return ""
    if xxhash.xxh3_128_hexdigest(data) != info.index_checksum:
        return ""
    write_file(folder / f"{info.name}.idx", data)
    return "index rebuilt from its tar"


def _mend_tar(folder: Path, info: ShardInfo, tar: memoryview) -> str:
    """Write headers and padding again around the members' data."""
    try:
        index = ShardReader(folder, info).index
    except ShardError:
        return ""
    digest, at = xxhash.xxh3_128(), 0
    file = open_temporary(folder / f"{info.name}.tar")
    for start, between, _ in frame(index):
        for piece in (tar[at:start], between):
            file.write(piece)
            digest.update(piece)
        at = start + len(between)
    if digest.hexdigest() != info.checksum:
        discard(file)
        return ""
    commit(file, folder / f"{info.name}.tar")
    return "tar headers and padding rebuilt from its index"


def quarantine(folder: Path, name: str, reason: str) -> None:
    """Take a shard out of a stream; the manifest keeps its entry, with the reason."""
    manifest = _read(folder)
    entry = next(entry for entry in manifest["shards"] if entry["name"] == name)
    shards = [other for other in manifest["shards"] if other is not entry]
    _write(
        folder, manifest, shards, [*manifest.get("quarantined", []), {**entry, "reason": reason}]
    )


def _readmit(folder: Path, name: str) -> None:
    """List a shard again that is whole again."""
    manifest = _read(folder)
    apart = manifest.get("quarantined", [])
    entries = [{k: v for k, v in e.items() if k != "reason"} for e in apart if e["name"] == name]
    _write(folder, manifest, manifest["shards"] + entries, [e for e in apart if e["name"] != name])
    for path in _files(folder / QUARANTINE, name):
        path.unlink(missing_ok=True)
    if (folder / QUARANTINE).is_dir() and not any((folder / QUARANTINE).iterdir()):
        (folder / QUARANTINE).rmdir()


def _write(folder: Path, manifest: dict, shards: list[dict], apart: list[dict]) -> None:
    def in_order(entries: list[dict]) -> list[dict]:
        return sorted(entries, key=lambda entry: (len(entry["name"]), entry["name"]))

    manifest |= {
        "documents": sum(entry["documents"] for entry in shards),
        "tokens": total_of(shards, "tokens"),
        "shards": in_order(shards),
        "quarantined": in_order(apart),
    }
    if not apart:
        del manifest["quarantined"]
    write_manifest(Folder(folder), manifest)


def _move_aside(folder: Path) -> None:
    """Move the files of shards in quarantine that still lie in the stream."""
    for entry in _read(folder).get("quarantined", []):
        for path in _files(folder, entry["name"]):
            if path.is_file():
                (folder / QUARANTINE).mkdir(exist_ok=True)
                path.replace(folder / QUARANTINE / path.name)


def _is_there(folder: Path, entry: dict) -> bool:
    """Whether a shard's files have their sizes, or can be made to."""
    sizes = [entry["bytes"], entry["index_bytes"]]
    found = [p.stat().st_size if p.is_file() else -1 for p in _files(folder, entry["name"])]
    return found == sizes or bool(mend(folder, shard_info(entry)))


def _files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}.tar", folder / f"{name}.idx"]


def _read(folder: Path) -> dict:
    return json.loads((folder / "stream.json").read_bytes())
