"""Prompts: text in which `<image:PATH>` and `<speech:PATH>` stand for files, as global ids."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from plait.pipeline.vocabulary import BOS, Vocabulary
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.media import read_audio, read_image

FILE = re.compile(r"<(image|speech):([^<>]+)>")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file of JSON lines: strings, or objects with a string "prompt".

    ConfigError, with the line's number, for anything else, and if there is none.
    """
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--prompts {path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--prompts {path}, line {number}: no JSON: {error}") from None
        prompt = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(prompt, str):
            raise ConfigError(
                f'--prompts {path}, line {number}: a string or {{"prompt": "..."}} should be here'
            )
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"--prompts {path}: there is no prompt in it")
    return prompts


def encode_prompt(
    prompt: str, tokenizers: dict[str, Tokenizer], vocabulary: Vocabulary
) -> list[int]:
    """Global ids of a prompt: `<bos>`, then its text and files in order."""
    ids = [BOS]
    for modality, raw in parse_prompt(prompt):
        names = [n for n, t in tokenizers.items() if t.modality == modality]
        if not names and isinstance(raw, str):
            names = [n for n, t in tokenizers.items() if t.modality == "bytes"]
            raw = raw.encode()
        if not names:
            raise ConfigError(f"the prompt has {modality}, for which the run has no tokenizer")
        name = names[0]
        encoded = tokenizers[name].encode_batch([raw])[0]
        span = vocabulary.to_global(name, encoded.ids).tolist()
        begin, end = vocabulary.begin(name), vocabulary.end(name)
        ids += span if begin is None or end is None else [begin, *span, end]
    return ids


def parse_prompt(prompt: str) -> Iterator[tuple[str, object]]:
    """The parts of a prompt: (modality, raw sample) in order."""
    position = 0
    for match in FILE.finditer(prompt):
        if match.start() > position:
            yield "text", prompt[position : match.start()]
        read: Callable[[Path], object] = read_image if match[1] == "image" else read_audio
        yield match[1], read(Path(match[2]))
        position = match.end()
    if position < len(prompt):
        yield "text", prompt[position:]
