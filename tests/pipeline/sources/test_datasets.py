import json

import pyarrow
import pytest
from pyarrow import ipc

from plait.pipeline.find import find_sources, open_sources
from plait.tokenizers.errors import ConfigError

from ..made_sources import captioned_table, png, write_dataset


def keys(source, start=0, stop=None):
    return [s.key for s in source.read(start, len(source) if stop is None else stop)]


def test_the_files_of_a_dataset_are_one_list(tmp_path):
    tables = [captioned_table(8), captioned_table(5, first=8), captioned_table(1, first=13)]
    folder = write_dataset(tmp_path / "set", tables)
    (folder / "cache-123.arrow").write_bytes(b"left by a map")
    (source,) = open_sources(folder)
    assert (source.kind, len(source)) == ("datasets", 14)
    assert keys(source) == [f"row {i}#{i + 1}" for i in range(14)]
    assert keys(source, 7, 9) == ["row 7#8", "row 8#9"]
    sample = next(source.read(0, 1))
    assert [p.value for p in sample.parts] == [png(0), "caption 0"]


def test_a_dict_of_datasets_is_a_source_a_split(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        write_dataset(tmp_path / "sets" / split, [captioned_table(count)])
    (tmp_path / "sets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for found in (open_sources(tmp_path / "sets"), open_sources(tmp_path, "datasets")):
        assert [(s.path.name, len(s)) for s in found] == [("test", 2), ("train", 6)]
    passed_over = find_sources(tmp_path).passed_over
    assert [p.name for p in passed_over] == ["dataset_dict.json"]


def test_one_arrow_file_alone(tmp_path):
    folder = write_dataset(tmp_path / "set", [captioned_table(4)])
    (source,) = open_sources(folder / "data-00000-of-00001.arrow")
    assert len(keys(source)) == 4


def test_columns_must_agree(tmp_path):
    folder = write_dataset(tmp_path / "set", [captioned_table(4), pyarrow.table({"text": ["a"]})])
    with pytest.raises(ConfigError, match=r"data-00001-of-00002\.arrow: other columns"):
        open_sources(folder)


@pytest.mark.parametrize("kept", [0, 7, 200, -4, -16, -400])
def test_a_cut_file_is_an_error(tmp_path, kept):
    folder = write_dataset(tmp_path / "set", [captioned_table(20)])
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"\.arrow: .*(cut short|damaged)"):
        open_sources(folder)


@pytest.mark.parametrize("name", ["../a.arrow", "/etc/a.arrow", "gone.arrow", 3, None])
def test_what_the_state_names_must_lie_in_the_folder(tmp_path, name):
    folder = write_dataset(tmp_path / "set", [captioned_table(2)])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(ConfigError, match=r"names no data files in the folder|missing file"):
        open_sources(folder, "datasets")


def test_indices_are_refused(tmp_path):
    folder = write_dataset(tmp_path / "set", [captioned_table(2)])
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{}]}))
    with pytest.raises(ConfigError, match="flatten_indices"):
        open_sources(folder)


def test_damaged_offsets_reject_rows_and_do_no_harm(tmp_path):
    """Bytes of a mapped file are used as they lie; each is changed in turn."""
    folder = write_dataset(tmp_path / "set", [pyarrow.table({"text": ["abc", "de", "f"] * 3})])
    file = folder / "data-00000-of-00001.arrow"
    data = file.read_bytes()
    outcomes = set()
    for place in range(0, len(data) - 8, 3):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xD5]) + data[place + 1 :])
        try:
            (source,) = open_sources(folder)
            for sample in source.read(0, min(len(source), 100)):
                outcomes.add(getattr(sample, "reason", "fine").partition(":")[0])
        except ConfigError as error:
            outcomes.add("error")
            assert str(folder) in str(error)
    assert outcomes >= {"fine", "bad row", "error"}


def test_many_batches(tmp_path):
    table = pyarrow.table({"text": [f"text {i}" for i in range(1000)]})
    folder = write_dataset(tmp_path / "set", [table], batch_rows=17)
    (source,) = open_sources(folder)
    texts = [s.parts[0].value for s in source.read(500, 520)]
    assert texts == [f"text {i}" for i in range(500, 520)]
    with ipc.open_stream(str(folder / "data-00000-of-00001.arrow")) as stream:
        assert sum(1 for _ in stream) == 59
