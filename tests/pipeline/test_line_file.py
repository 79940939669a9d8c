import errno
from pathlib import Path

import pytest

from plait.pipeline import line_file
from plait.pipeline.line_file import LineFile


def test_lines_that_find_no_space_come_later(tmp_path, monkeypatch, capsys):
    file = LineFile(tmp_path / "lines.jsonl")
    file.append("one")
    write = line_file._write_all

    def full(stream, data):
        stream.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(line_file, "_write_all", full)
    file.append("two")
    file.append("three")
    assert file.path.read_text() == "one\n"
    assert capsys.readouterr().err.count("No space left") == 1
    monkeypatch.setattr(line_file, "_write_all", write)
    file.append("four")
    assert file.path.read_text() == "one\ntwo\nthree\nfour\n"


def test_any_other_error_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        LineFile(tmp_path / "nowhere" / "lines.jsonl").append("one")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_full(capsys):
    LineFile(Path("/dev/full")).append("one")
    assert "No space left" in capsys.readouterr().err
