"""`plait list` against the folders, and without the weight of torch."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from plait.pipeline import catalog
from plait.tokenizers.base import Tokenizer


def test_every_file_of_a_folder_is_listed_with_a_summary(repository: Path):
    folders = {"sources": "pipeline/sources/*.py", "presets": "models/presets/*.toml"}
    for kind, pattern in folders.items():
        parts = catalog.FIND[kind]()
        assert [p.name for p in parts] == sorted(f.stem for f in repository.glob(pattern))
        assert all(len(p.summary) > 10 and "\n" not in p.summary for p in parts)


def test_tokenizers_are_listed_by_their_classes():
    parts = {p.name: p for p in catalog.tokenizers()}
    assert parts["text"].classes == ("Text",)
    assert not {"base", "errors", "kmeans", "media"} & set(parts)
    for name, part in parts.items():
        module = import_module(f"plait.tokenizers.{name}")
        assert all(issubclass(getattr(module, c), Tokenizer) for c in part.classes)


def test_json_and_table_say_the_same(capsys: pytest.CaptureFixture[str]):
    assert catalog.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["tokenizers", "sources", "presets"]
    assert catalog.main(["presets"]) == 0
    table = capsys.readouterr().out
    assert all(part["name"] in table for part in facts["presets"])
    assert "sources" not in table.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One"),
        ("No stop", "No stop"),
        ("A file a.txt of\nv1.5 here. More", "A file a.txt of v1.5 here"),
        ("Things, e.g. this one. More", "Things, e.g. this one"),
        ("Title\n\nBody.", "Title"),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str):
    assert catalog.first_sentence(text) == sentence


def test_listing_imports_no_torch():
    script = (
        "import sys; from plait.pipeline import catalog; catalog.main([]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
