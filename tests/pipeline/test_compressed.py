import gzip

import pytest

from plait.pipeline.compressed import read_plain, suffix_of, zstd
from plait.pipeline.find import open_sources
from plait.tokenizers.errors import ConfigError, SampleError

from .made_sources import write

PACKERS = {".gz": gzip.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("ending", sorted(PACKERS))
def test_compressed_texts(tmp_path, ending):
    pack = PACKERS[ending]
    write(tmp_path / f"a.txt{ending}", pack(b"one") + pack(b" two"))
    write(tmp_path / f"b.md{ending}", pack(b"x" * 10_000)[:-3])
    write(tmp_path / "c.txt", b"plain")
    (source,) = open_sources(tmp_path)
    first, second, third = source.read(0, 3)
    assert (first.key, first.parts[0].load()) == (f"a.txt{ending}", "one two")
    with pytest.raises(SampleError, match=r"damaged (gzip|zstd) file"):
        second.parts[0].load()
    assert third.parts[0].load() == "plain"
    (source,) = open_sources(f"bytes:{tmp_path}")
    assert next(source.read(0, 1)).parts[0].load() == pack(b"one") + pack(b" two")


@pytest.mark.parametrize("ending", sorted(PACKERS))
def test_what_swells_is_bounded(tmp_path, ending):
    path = write(tmp_path / f"a.txt{ending}", PACKERS[ending](bytes(50 << 20)))
    assert path.stat().st_size < 100_000
    with pytest.raises(SampleError, match="more than 1,000,000 bytes"):
        read_plain(path, 1_000_000)


@pytest.mark.parametrize(
    "data", [zstd.compress(b'{"text": "a"}\n' * 900)[:-5], b"\x28\xb5\x2f\xfd"]
)
def test_a_damaged_zstd_file_is_named(tmp_path, data):
    path = write(tmp_path / "a.jsonl.zst", data)
    with pytest.raises(ConfigError, match=r"a\.jsonl\.zst: damaged zstd file.*fetch it again"):
        len(open_sources(path, "jsonl")[0])


def test_rows_in_zstd_are_read_from_the_middle(tmp_path):
    rows = b"".join(b'{"text": "%d"}\n' % i for i in range(9000))
    (source,) = open_sources(write(tmp_path / "A.JSONL.ZST", zstd.compress(rows)))
    assert len(source) == 9000
    assert [s.parts[0].value for s in source.read(8000, 8002)] == ["8000", "8001"]


def test_suffixes():
    assert suffix_of("a.b/c.TXT.GZ") == ".txt" and suffix_of(".gz") == ""
