"""Damage of any byte is found and named; repaired files are as they were, to the byte."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.pipeline import repair
from plait.pipeline.filters import Filters
from plait.pipeline.inspect import command as inspect
from plait.pipeline.rows import Rows
from plait.pipeline.shard import main as shard_main
from plait.pipeline.shard import shard
from plait.pipeline.shard_check import check_shard, frame
from plait.pipeline.stream import Stream
from plait.pipeline.verify import main, verify
from plait.tokenizers.errors import ResumeError

from .conftest import tree, write_rows
from .made_stream import random_stream

SHARD = "shard-000001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bytes_tokenizer):
    """A job of four shards in one folder with its source; the second shard has three blocks."""
    folder = tmp_path_factory.mktemp("job")
    rows = [{"id": f"r{i}", "text": f"number {i} " * 5 if i % 9 else ""} for i in range(80)]
    source = write_rows(folder / "t.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plait.pipeline.shard_writer.BLOCK_DOCUMENTS", 7)
        shard([source], folder / "out", [bytes_tokenizer], samples_per_shard=20)
    return folder


@pytest.fixture
def job(whole, tmp_path, bytes_tokenizer, monkeypatch):
    """Its stream in a copy that may be damaged, and the command that makes it."""
    monkeypatch.setattr("plait.pipeline.shard_writer.BLOCK_DOCUMENTS", 7)
    shutil.copytree(whole / "out", tmp_path / "out")
    argv = [str(whole / "t.jsonl"), "--out", str(tmp_path / "out"), "--samples-per-shard", "20"]
    return tmp_path / "out", [*argv, "--tokenizer", str(bytes_tokenizer)]


def flip(path, at, bits=16):
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)


def block_at(index, at):
    """The block to which a byte of the tar belongs: headers go before, padding after."""
    starts = {}
    for block in index.blocks:
        ends = [o + s + -s % 512 for o, s, _ in block.members.values()]
        starts[block.name] = (min(o for o, _, _ in block.members.values()) - 512, max(ends))
    return next((name for name, (a, b) in starts.items() if a <= at < b), index.blocks[-1].name)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_tar_is_found_and_its_block_named(job, share, bit):
    path = job[0] / f"{SHARD}.tar"
    index = Stream(job[0]).reader(1).index
    at = int(share * path.stat().st_size)
    flip(path, at, 1 << bit)
    found, _ = check_shard(Stream(job[0]), 1)
    flip(path, at, 1 << bit)
    blocks = [b.name for b in index.blocks]
    named = {p.block for p in found}
    place = block_at(index, at)
    beside = blocks[min(blocks.index(place) + 1, len(blocks) - 1)]  # padding before its header
    assert found and named <= {place, beside}
    assert check_shard(Stream(job[0]), 1)[0] == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_an_index_is_repaired(job, share, bit):
    out, path = job[0], job[0] / f"{SHARD}.idx"
    before = path.read_bytes()
    flip(path, int(share * len(before)), 1 << bit)
    problems = list(verify(Stream(out)))
    assert [(p.shard, f"{SHARD}.idx" in p.problem) for p in problems] == [(SHARD, True)]
    assert repair.repair(out, problems) == [f"{SHARD}: index rebuilt from its tar"]
    assert path.read_bytes() == before


def test_problems_come_in_order_for_any_number_of_threads(job):
    out, _ = job
    for number in (0, 2, 3):
        for block in Stream(out).reader(number).index.blocks:
            flip(out / f"shard-00000{number}.tar", block.data)
    one = list(verify(Stream(out), 1))
    assert [p.block for p in one] == [
        b.name for n in (0, 2, 3) for b in Stream(out).reader(n).index.blocks
    ]
    assert list(verify(Stream(out), 4)) == one


def test_a_tar_is_exactly_its_members_and_their_frame(tmp_path):
    stream, _ = random_stream(tmp_path / "s", documents=300, shards=2)
    reader = stream.reader(1)
    index = reader.index
    pieces = [(start, data) for start, data, _ in frame(index)]
    pieces += [
        (o, bytes(reader.buffer[o : o + n])) for b in index.blocks for o, n, _ in b.members.values()
    ]
    assert b"".join(data for _, data in sorted(pieces)) == bytes(reader.buffer)


def remove_index(out):
    (out / f"{SHARD}.idx").unlink()


def cut_index(out):
    path = out / f"{SHARD}.idx"
    path.write_bytes(path.read_bytes()[:-700])


def flip_header(out):
    flip(out / f"{SHARD}.tar", 3)


def flip_padding(out):
    path = out / f"{SHARD}.tar"
    flip(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [remove_index, cut_index, flip_header, flip_padding])
def test_what_can_be_rebuilt_is_as_it_was(damage, job, capsys):
    out, _ = job
    before = tree(out)
    damage(out)
    assert main([str(out)]) == 1
    assert tree(out) != before
    capsys.readouterr()
    assert main([str(out), "--repair"]) == 0
    shown = capsys.readouterr().out
    assert "rebuilt from its" in shown and "all well: 4 shards" in shown
    assert tree(out) == before
    assert main([str(out), "--repair"]) == 0 and tree(out) == before


def flip_token(out):
    flip(out / f"{SHARD}.tar", Stream(out).reader(1).index.blocks[1].data + 5)


def cut_tar(out):
    path = out / f"{SHARD}.tar"
    path.write_bytes(path.read_bytes()[:3000])


def remove_both(out):
    remove_index(out)
    (out / f"{SHARD}.tar").unlink()


def damage_both(out):
    flip_header(out)
    remove_index(out)


@pytest.mark.parametrize("damage", [flip_token, cut_tar, remove_both, damage_both])
def test_a_lost_shard_is_set_aside_and_made_again(damage, job, capsys):
    out, argv = job
    before, stream = tree(out), Stream(out)
    damage(out)
    damaged = {n: d for n, d in tree(out).items() if n.startswith(SHARD)}
    assert main([str(out), "--repair", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] and facts["repairs"] == [f"{SHARD}: moved to {out}/quarantine"]
    (entry,) = facts["quarantined"]
    assert (entry["name"], entry["start"], entry["stop"]) == (SHARD, 20, 40)
    assert entry["documents"] == stream.shards[1].documents and SHARD in entry["reason"]
    assert {n: d for n, d in tree(out).items() if n.startswith("q")} == {
        f"quarantine/{n}": d for n, d in damaged.items()
    }
    left = Stream(out)
    assert left.manifest["documents"] == left.documents == stream.documents - entry["documents"]
    assert left.manifest["tokens"]["bytes"] == left.tokens
    assert left.documents + left.rejected + entry["documents"] == left.manifest["samples"]
    rows = Rows(left, seq_len=64)
    assert rows.batch(range(len(rows))).tokens_BT.shape[0] == len(rows)
    assert main([str(out)]) == 0
    assert f"in quarantine: {SHARD}: {entry['documents']} documents" in capsys.readouterr().out
    assert shard_main(argv) == 0
    assert "was made again" in capsys.readouterr().out
    assert tree(out) == before


def test_inspect_says_what_is_in_quarantine(job, capsys):
    out, _ = job
    flip_token(out)
    repair.repair(out, verify(Stream(out)))
    assert inspect.main([str(out), "--json"]) == 0
    alerts = json.loads(capsys.readouterr().out)["alerts"]
    assert f"18 documents are in quarantine ({SHARD}); see `plait verify`." in alerts


def test_a_shard_that_was_deleted_is_made_again(job):
    """Without `--repair`; a missing index is rebuilt, the rest is left alone."""
    out, argv = job
    before = tree(out)
    (out / "shard-000002.tar").unlink()
    remove_index(out)
    kept = (out / f"{SHARD}.tar").stat().st_ino
    assert shard_main(argv) == 0
    assert tree(out) == before and (out / f"{SHARD}.tar").stat().st_ino == kept


def test_what_is_in_quarantine_goes_with_a_job_begun_anew(job):
    out, argv = job
    before = tree(out)
    flip_token(out)
    repair.repair(out, verify(Stream(out)))
    assert (out / "quarantine").is_dir()
    assert shard_main([*argv, "--restart"]) == 0
    assert tree(out) == before


def test_ids_beyond_the_vocabulary_cannot_be_repaired(job):
    out, _ = job
    manifest = json.loads((out / "stream.json").read_bytes())
    manifest["tokenizers"][0]["vocab_size"] = 117
    (out / "stream.json").write_text(json.dumps(manifest))
    problems = list(verify(Stream(out)))
    assert any("has ids up to 116" in p.problem for p in problems)
    repair.repair(out, problems)
    assert len(json.loads((out / "stream.json").read_bytes())["quarantined"]) == 4


def test_killed_between_manifest_and_move(job, monkeypatch):
    out, _ = job
    flip_token(out)
    with monkeypatch.context() as patch:
        patch.setattr(repair, "_move_aside", lambda folder: None)
        repair.repair(out, verify(Stream(out)))
    assert not (out / "quarantine").exists() and len(Stream(out).shards) == 3
    assert main([str(out), "--repair"]) == 0
    assert sorted(p.name for p in (out / "quarantine").iterdir()) == [
        f"{SHARD}.idx",
        f"{SHARD}.tar",
    ]


def test_killed_while_a_shard_is_made_again(job, monkeypatch):
    out, argv = job
    before = tree(out)
    flip_token(out)
    repair.repair(out, verify(Stream(out)))

    def killed(folder, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(repair, "_readmit", killed)
        shard_main(argv)
    assert len(Stream(out).shards) == 3
    assert shard_main(argv) == 0 and tree(out) == before


def test_a_shard_that_comes_out_differently_is_refused(tmp_path, bytes_tokenizer):
    """A file of the same size changed since: the stream is left as it is."""
    (tmp_path / "texts").mkdir()
    for name in "abcd":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"text {name}")
    arguments = ([tmp_path / "texts"], tmp_path / "out", [bytes_tokenizer])
    shard(*arguments, samples_per_shard=2)
    flip_token_of = tmp_path / "out" / f"{SHARD}.tar"
    flip(flip_token_of, Stream(tmp_path / "out").reader(1).index.blocks[0].data)
    repair.repair(tmp_path / "out", verify(Stream(tmp_path / "out")))
    (tmp_path / "texts" / "c.txt").write_text("text X")
    before = {n: d for n, d in tree(tmp_path / "out").items() if not n.startswith("job/")}
    with pytest.raises(ResumeError, match=f"{SHARD}, made again, is another one than before"):
        shard(*arguments, samples_per_shard=2)
    assert {n: d for n, d in tree(tmp_path / "out").items() if not n.startswith("job/")} == before
    (tmp_path / "texts" / "c.txt").write_text("text c")
    assert shard(*arguments, samples_per_shard=2).state == "restored"
    assert main([str(tmp_path / "out")]) == 0


def test_a_filtered_shard_is_made_again(tmp_path, bytes_tokenizer):
    rows = [{"id": f"r{i}", "text": f"text {i % 30}"} for i in range(60)]
    source = write_rows(tmp_path / "t.jsonl", rows)
    filters = Filters(deduplicate="documents", validation=0.3)
    options = {"samples_per_shard": 10, "filters": filters}
    shard([source], tmp_path / "out", [bytes_tokenizer], **options)
    before = tree(tmp_path / "out")
    for part in ("train", "validation"):
        for path in (tmp_path / "out" / part).glob("*.tar"):
            path.unlink()
    assert shard([source], tmp_path / "out", [bytes_tokenizer], **options).state == "restored"
    assert tree(tmp_path / "out") == before
