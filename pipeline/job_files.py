"""The files of a shard job: begun, compared with those of another run, assembled, removed.

`job/job.json` says what the job is, `job/task-NNNNNN.json` that a task is finished. When all are,
`finish` writes the manifest from them, and the folder `job` goes. `job/restart.json` lists what
`--restart` is removing: a run that finds it removes the rest first, so a restart may be killed too.
"""

import json
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict

from plait.pipeline.block import json_bytes
from plait.pipeline.index import FORMAT
from plait.pipeline.job import Job, Record, Task
from plait.pipeline.shard_writer import TEMPORARY, ShardInfo
from plait.pipeline.source import Json
from plait.pipeline.store import Store
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError, ResumeError, ShardError

MANIFEST = "stream.json"
REJECTED = "rejected.jsonl"
BEGUN = "job/job.json"
RESTART = "job/restart.json"
OF_TASKS = ("task-", "content-", "dropped")
"""Files of the folder `job` begin so."""
QUARANTINE = "quarantine"
"""The folder of damaged shards that were taken out of the stream, see repair.py."""
MARKERS = (BEGUN, RESTART, MANIFEST)
"""One of these is there from before the first shard on; the last ones are written last."""
_NAME = r"[A-Za-z0-9_][\w.-]*"
_OURS = re.compile(
    rf"({QUARANTINE}/|job/|tokenizers/{_NAME}/)?{_NAME}|\.{_NAME}{re.escape(TEMPORARY)}", re.ASCII
)
_UNFINISHED = re.compile(r"\.shard-(\d+)\..*" + re.escape(TEMPORARY))


def refuse_foreign(store: Store) -> None:
    """ConfigError if there is something that is no shard job; nothing is written before."""
    others = sorted(n for n in store.names() - {"job", "tokenizers"} if not _is_temporary(n))
    if others and not store.read(MARKERS):
        raise ConfigError(
            f"{store}: not empty ({', '.join(others[:3])}), and no stream or shard job; choose "
            "another folder for --out"
        )


def begin(
    job: Job, tokenizers: Sequence[Tokenizer], *, restart: bool = False, shared: bool = False
) -> bool:
    """Prepare the store; False if the job is already finished there.

    `restart` first removes the job that is there; `shared` says that other ranks may be at work.
    Raises ResumeError if there is another job.
    """
    store, specification = job.store, job.specification()
    found = store.read(MARKERS)
    if shared and RESTART in found:
        raise ResumeError(
            f"{store}: a --restart was stopped here; repeat that command, then start the ranks"
        )
    if restart and found and RESTART not in found:
        store.write(RESTART, json_bytes({"remove": _files_of_job(store, found)}))
        found = store.read([RESTART])
    if RESTART in found:
        _remove_listed(store, found[RESTART])
        for info in job.infos:  # of a restart that was stopped
            store.remove_folder(f"tokenizers/{info.name}")
    elif MANIFEST in found:
        compare(_parsed(store, MANIFEST, found[MANIFEST]), specification, store)
        return False
    elif BEGUN in found:
        compare(_parsed(store, BEGUN, found[BEGUN]), specification, store)
    for tokenizer, info in zip(tokenizers, job.infos, strict=True):
        _save_tokenizer(store, tokenizer, info.name)
    if BEGUN not in found or RESTART in found:
        store.write(BEGUN, json_bytes({**specification, "tasks": len(job.tasks())}))
    store.remove([RESTART] if RESTART in found else [])
    return True


def compare(found: dict, wanted: dict, store: Store) -> None:
    """ResumeError naming each part in which a job differs from the one in the store."""
    differing = []
    for part in ("tokenizers", "options"):
        if found.get(part) != wanted[part]:
            differing.append(f"{part}: was {_short(found.get(part))}, is {_short(wanted[part])}")
    old, new = found.get("sources", []), wanted["sources"]
    if len(old) != len(new):
        differing.append(f"sources: there were {len(old)}, now {len(new)}")
    for a, b in zip(old, new, strict=False):
        fields = [k for k in b if a.get(k) != b[k]]
        differing += [f"source {b['path']}: {k} was {a.get(k)!r}, is {b[k]!r}" for k in fields]
    if differing:
        raise ResumeError(
            f"{store} holds another job:\n  "
            + "\n  ".join(differing[:10])
            + "\nchoose another --out, or remove that job and begin again with --restart"
        )


def read_records(job: Job, tasks: Sequence[Task]) -> dict[Task, Record]:
    """The records of those tasks that are finished and whose files are still there."""
    by_name = {f"job/{task.record}": task for task in tasks}
    there = job.store.files("job")
    data = job.store.read(name for name, task in by_name.items() if task.record in there)
    sizes = job.store.files() if data else {}
    records = {by_name[name]: _record(entry) for name, entry in data.items()}
    return {task: r for task, r in records.items() if r is not None and _is_whole(r, sizes)}


def remove_unfinished(store: Store, tasks: Iterable[Task]) -> None:
    """Remove what killed processes left of these tasks; a task belongs to one process at a time."""
    numbers = {task.number for task in tasks}
    found = {name: _UNFINISHED.fullmatch(name) for name in store.names()}
    store.remove([name for name, match in found.items() if match and int(match[1]) in numbers])


def all_recorded(job: Job) -> bool:
    """Whether each task has its record."""
    there = job.store.files("job")
    return all(task.record in there for task in job.tasks())


def finish(job: Job) -> dict:
    """Assemble the manifest from the records; ResumeError if some are missing."""
    tasks = job.tasks()
    records = read_records(job, tasks)
    missing = [task.number for task in tasks if task not in records]
    if missing:
        manifest = read_manifest(job.store)
        if manifest is not None:  # another rank has assembled it and removed the records
            clean(job.store)
            return manifest
        numbers = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ResumeError(
            f"{job.store}: {len(missing)} of {len(tasks)} tasks are not finished ({numbers}); run "
            "their ranks again, or the command without --rank and --finish"
        )
    manifest, rejected = assemble(job, records)
    job.store.write(REJECTED, b"".join(line + b"\n" for line in rejected))
    write_manifest(job.store, manifest)
    clean(job.store)
    return manifest


def write_manifest(store: Store, manifest: Mapping[str, Json]) -> None:
    """Put `stream.json` in place, whole."""
    text = json.dumps(manifest, indent=1, ensure_ascii=True) + "\n"
    store.write(MANIFEST, text.encode())


def assemble(job: Job, records: Mapping[Task, Record]) -> tuple[dict, list[bytes]]:
    """The manifest of these tasks, and the lines of `rejected.jsonl`."""
    shards, rejected, reasons = [], [], Counter()
    samples = documents = 0
    for task in sorted(records, key=lambda task: task.number):
        record = records[task]
        source = str(job.sources[task.source].path)
        if record.shard is not None:
            place = {"source": task.source, "start": task.start, "stop": task.stop}
            shards.append({**asdict(record.shard), **place})
        for key, reason in record.rejected:
            rejected.append(json_bytes({"source": source, "key": key, "reason": reason}))
            reasons[reason.partition(":")[0]] += 1
        samples += record.documents + len(record.rejected)
        documents += record.documents
    manifest = {
        "format": FORMAT,
        "documents": documents,
        "rejected": len(rejected),
        "samples": samples,
        "tokens": total_of(shards, "tokens"),
        "rejected_reasons": dict(sorted(reasons.items())),
        **job.specification(),
        "shards": shards,
    }
    return manifest, rejected


def read_manifest(store: Store) -> dict | None:
    """The manifest, if the job is finished."""
    found = store.read([MANIFEST])
    return _parsed(store, MANIFEST, found[MANIFEST]) if found else None


def clean(store: Store) -> None:
    """Remove records, and what killed processes left."""
    store.remove_folder("job")
    left, files = {name for name in store.names() if _is_temporary(name)}, store.files()
    store.remove(left & files.keys())
    for name in left - files.keys():
        store.remove_folder(name)


def _remove_listed(store: Store, data: bytes) -> None:
    names = _parsed(store, RESTART, data).get("remove")
    if not isinstance(names, list) or not all(_OURS.fullmatch(str(name)) for name in names):
        raise ShardError(f"{store}/{RESTART}: damaged; remove the old job by hand")
    store.remove(names)


def _files_of_job(store: Store, found: Mapping[str, bytes]) -> list[str]:
    """All files of the job that is there, the manifest first: what is left of it is no stream."""
    described = {name: _parsed(store, name, data) for name, data in found.items()}
    try:
        tasks = int(described.get(BEGUN, {}).get("tasks", 0))
        shards = {entry["name"] for entry in described.get(MANIFEST, {}).get("shards", [])}
        tokenizers = {info["name"] for entry in described.values() for info in entry["tokenizers"]}
        strange = [name for name in shards | tokenizers if not re.fullmatch(_NAME, name, re.ASCII)]
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{store}: no job that can be removed: {error!r}") from None
    if strange:
        raise ShardError(f"{store}: lists impossible names ({strange[0]!r}); remove it by hand")
    there = store.files()
    listed = [name for name in (MANIFEST, REJECTED) if name in there]
    listed += [name for name in there if _is_temporary(name) or _is_of(name, shards, tasks)]
    for name in sorted(tokenizers):
        listed += [f"tokenizers/{name}/{file}" for file in store.files(f"tokenizers/{name}")]
    listed += [f"job/{name}" for name in store.files("job") if name.startswith(OF_TASKS)]
    listed += [f"{QUARANTINE}/{name}" for name in store.files(QUARANTINE)]
    return [name for name in listed if _OURS.fullmatch(name)]


def _is_of(name: str, shards: Set[str], tasks: int) -> bool:
    """Whether a file is one of these shards, or of the shards of an unfinished job."""
    shard, _, suffix = name.rpartition(".")
    match = re.fullmatch(r"shard-(\d{6,9})", shard, re.ASCII)
    return suffix in ("tar", "idx") and bool(shard in shards or (match and int(match[1]) < tasks))


def _save_tokenizer(store: Store, tokenizer: Tokenizer, name: str) -> None:
    if "config.json" in store.files(f"tokenizers/{name}"):
        return
    with store.workplace() as folder:
        part = folder / f".{name}.{secrets.token_hex(6)}{TEMPORARY}"
        try:
            tokenizer.save(part)
            store.publish_folder(part, f"tokenizers/{name}")
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _record(data: bytes) -> Record | None:
    try:
        entry = json.loads(data)
        shard = ShardInfo(**entry["shard"]) if entry["shard"] else None
        rejected = [(str(key), str(reason)) for key, reason in entry["rejected"]]
        return Record(documents=int(entry["documents"]), rejected=rejected, shard=shard)
    except (ValueError, KeyError, TypeError):  # a power failure may leave an empty file
        return None


def _is_whole(record: Record, sizes: Mapping[str, int]) -> bool:
    shard = record.shard
    return shard is None or (
        sizes.get(f"{shard.name}.tar") == shard.bytes
        and sizes.get(f"{shard.name}.idx") == shard.index_bytes
    )


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


def _parsed(store: Store, name: str, data: bytes) -> dict:
    try:
        entry = json.loads(data)
        if isinstance(entry, dict):
            return entry
        error = f"it holds a {type(entry).__name__}"
    except ValueError as damage:
        error = str(damage)
    raise ShardError(f"{store}/{name}: damaged: {error}; choose another --out, or remove it")


def total_of(shards: Sequence[dict], name: str) -> dict[str, int]:
    """Counts by modality (`tokens` or `spans`) of all shards together."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard[name])
    return {m: total[m] for m in sorted(total)}


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else text[:300] + "..."
