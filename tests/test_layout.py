"""The layout that DESIGN promises: nothing is shadowed, imports go one way, the wheel is whole."""

import ast
import importlib.util
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("kernels", "models", "pipeline", "tokenizers")
ALLOWED = {
    "kernels": ("plait.kernels",),
    "tokenizers": ("plait.kernels", "plait.tokenizers"),
    "pipeline": ("plait.kernels", "plait.tokenizers", "plait.pipeline"),
    "models": (
        "plait.kernels",
        "plait.models",
        "plait.tokenizers.errors",
        "plait.tokenizers.base",
        "plait.pipeline.batch",
        "plait.pipeline.vocabulary",
    ),
}
ALSO = {
    "models/training": ("plait.pipeline",),
    "models/evaluation": ("plait.pipeline",),
    "models/generation": ("plait.pipeline", "plait.tokenizers"),
}
"""Folders that may import more: training writes a run's folder, evaluation reads streams,
generation reads prompts and writes files."""
USERS_OF_THE_MODEL = ("plait.models.training", "plait.models.evaluation", "plait.models.generation")
"""What the model itself, models/*.py, does without."""


def own_imports(source: str) -> Iterator[str]:
    """Dotted names of plait's modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "plait")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            if module in ("plait", *(f"plait.{folder}" for folder in FOLDERS)):
                yield from (f"{module}.{a.name}" for a in node.names)
            elif module.startswith("plait."):
                yield module


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


def test_the_four_folders_are_namespaces(repository: Path):
    found = [
        p for f in (*FOLDERS, "tests", "benchmarks") for p in repository.glob(f"{f}/**/__init__.py")
    ]
    assert found == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(repository: Path, folder: str):
    wrong = []
    for path in sorted((repository / folder).rglob("*.py")):
        name = path.relative_to(repository).as_posix()
        allowed = (*ALLOWED[folder], *ALSO.get(name.rpartition("/")[0], ()), "plait.__version__")
        imports = list(own_imports(path.read_text(encoding="utf-8")))
        wrong += [f"{name}: {i}" for i in imports if not within(i, allowed)]
        if path.parent == repository / "models":
            wrong += [f"{name}: {i}" for i in imports if within(i, USERS_OF_THE_MODEL)]
    assert wrong == []


def test_nobody_imports_a_folder_by_its_bare_name_or_benchmarks(repository: Path):
    wrong = []
    for path in [
        *(p for f in FOLDERS for p in (repository / f).rglob("*.py")),
        repository / "train.py",
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names}
            wrong += [f"{path}:{node.lineno}" for _ in tops & {"pipeline", "models", "benchmarks"}]
    assert wrong == []


def test_import_scan_sees_what_it_should():
    source = (
        "import os, plait.models.plan\nfrom plait import Rows\nfrom plait.models import mamba\n"
        "def f():\n    from plait.pipeline.shard import x\n"
    )
    assert list(own_imports(source)) == [
        "plait.models.plan",
        "plait.Rows",
        "plait.models.mamba",
        "plait.pipeline.shard",
    ]
    assert within("plait.models.plan", ALLOWED["models"])
    assert not within("plait.modelsx", ALLOWED["models"])
    assert not within("plait.pipeline.batches", ALLOWED["models"])


@pytest.mark.parametrize("name", ["tokenizers", "kernels"])
def test_hugging_face_packages_are_not_shadowed(repository: Path, name: str):
    """From the checkout, `import tokenizers` is Hugging Face's package or none of ours."""
    script = f"import importlib.util as u; s = u.find_spec({name!r}); print(s and s.origin or '')"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    origin = done.stdout.strip()
    assert origin == "" or "site-packages" in origin


def test_a_regular_package_wins_over_our_folders(repository: Path, tmp_path: Path):
    """A stand-in for Hugging Face's package is found, though it is later on the path."""
    package = tmp_path / "tokenizers"
    package.mkdir()
    (package / "__init__.py").write_text("Tokenizer = 'theirs'\n")
    script = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import plait.tokenizers.errors; "
        "from tokenizers import Tokenizer; print(Tokenizer)"
    )
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(1, '.package'); {script}"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("theirs", "")


def test_package_links_are_relative_and_whole(repository: Path):
    package = repository / ".package" / "plait"
    for name in (*FOLDERS, "train.py"):
        link = package / name
        if (repository / ".git").exists():
            assert link.is_symlink() and not link.readlink().is_absolute()
        assert link.exists()


def test_plain_import_and_help_are_light(repository: Path):
    """`import plait` and `plait --help` must not import torch."""
    script = (
        "import sys, plait; from plait.pipeline import cli; assert cli.main(['--help']) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    environment_free = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, '.package'); {script}",
    ]
    done = subprocess.run(environment_free, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: plait COMMAND" in done.stdout


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(repository, "wheel", tmp_path_factory.mktemp("wheel"))


def build(root: Path, kind: str, out: Path) -> Path:
    """Build offline with the hatchling that is installed; the path of the artefact."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed (it is in the extra `dev`)")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(p for p in out.iterdir() if p.suffix in (".whl", ".gz"))


def test_wheel_holds_plait_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"plait", next(t for t in tops if t.endswith(".dist-info"))}
    assert not [
        n for n in names if n.endswith((".pyc", "__init__.py")) and n != "plait/__init__.py"
    ]


def test_wheel_holds_every_file_of_the_folders(repository: Path, wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"plait/{p.relative_to(repository).as_posix()}"
        for folder in FOLDERS
        for p in (repository / folder).rglob("*")
        if p.is_file()
        and p.suffix
        in {".py", ".toml", ".c", ".h", ".html", ".js", ".jsonl", ".png", ".flac", ".txt"}
    }
    assert wanted <= names
    assert {
        "plait/train.py",
        "plait/py.typed",
        "plait/pipeline/inspect/page.html",
        "plait/pipeline/inspect/page.js",
    } <= names
    assert "plait/pipeline/sample_data/LICENSES.md" in names


def test_sdist_builds_the_same_wheel(repository: Path, wheel: Path, tmp_path: Path):
    with tarfile.open(build(repository, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    root = next(p for p in tmp_path.iterdir() if p.name.startswith("plait-"))
    again = build(root, "wheel", tmp_path / "wheel")
    first, second = (zipfile.ZipFile(w) for w in (wheel, again))
    assert {i.filename: i.CRC for i in first.infolist()} == {
        i.filename: i.CRC for i in second.infolist()
    }


def test_sample_data_is_small_and_attributed(sample_data: Path):
    files = [p for p in sample_data.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3_600_000
    for name in ("images", "speech"):
        rows = [
            json.loads(x) for x in (sample_data / name / "metadata.jsonl").read_text().splitlines()
        ]
        media = {p.name for p in (sample_data / name).iterdir()} - {"metadata.jsonl"}
        assert {row["file_name"] for row in rows} == media
        assert all(row["license"] and row["creator"] for row in rows)
    licenses = (sample_data / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{d.name}/" in licenses for d in sample_data.iterdir() if d.is_dir())
