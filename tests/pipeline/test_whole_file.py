import errno
from pathlib import Path

import pytest

from plait.pipeline.whole_file import write_whole


def test_replaces_what_is_there_or_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_whole(path, "one")
    write_whole(path, "twö", synced=True)
    assert path.read_bytes() == "twö".encode() and list(tmp_path.iterdir()) == [path]

    def killed(*_):
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(OSError, match="gone"):
        write_whole(path, "three", synced=True)
    assert path.read_text(encoding="utf-8") == "twö"
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", ".x.json.writing"}
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(OSError, match="gone"):
        write_whole(path, "four")
    assert path.read_text(encoding="utf-8") == "twö"
