"""The README's commands and Python, run as they stand there, on the sample data."""

import re
import shlex
from pathlib import Path

import pytest

from plait.pipeline import cli, demo

BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
SMALLER = {
    "image": ["--method", "patches", "--levels", "4", "4", "4"],
    "speech": ["--codebooks", "2", "--codebook-size", "64"],
    "text": ["--vocab-size", "512"],
}


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return [code for kind, code in BLOCK.findall(text) if kind == language]


@pytest.mark.slow
def test_commands_and_python_of_the_readme(repository, sample_data, tmp_path, monkeypatch):
    """Only DATA, the number of steps and the tokenizers' sizes are set for a quick run."""
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line)
        for code in blocks(repository, "sh")
        for line in code.replace("\\\n", " ").splitlines()
        if line.strip()
    ]
    assert len(commands) >= 10
    for program, command, *words in commands:
        assert program == "plait"
        words = [str(sample_data) if word == "DATA" else word for word in words]
        words = ["2" if word == "300" else word for word in words]
        words += SMALLER.get(words[0], []) if command == "fit" else []
        assert cli.main([command, *words]) == 0, (command, words)
    for code in blocks(repository, "python"):
        exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "stream.html").is_file()
    assert (tmp_path / "samples" / "image.png").is_file()


def test_every_command_has_help(capsys):
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert name in capsys.readouterr().out


def test_unknown_command_is_wrong_use(capsys):
    assert cli.main(["tokenise"]) == 2
    assert "no command 'tokenise'" in capsys.readouterr().err


def test_demo_goes_through_the_promised_places(tmp_path):
    made = [word for _, command, _ in demo.steps(tmp_path, 3, 1) for word in command]
    for place in ("tokenizers/text", "tokenizers/bytes", "stream", "runs/mot", "runs/dense"):
        assert str(tmp_path / place) in made
    assert {str(tmp_path / "samples"), str(tmp_path / "inspect.html")} <= set(made)
