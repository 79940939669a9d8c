"""What was sampled, as files: text, pictures, sound and bytes, and a page of them in order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from plait.models.generation.grammar import Part
from plait.pipeline.inspect.markup import join, tag
from plait.tokenizers.base import Encoded, Tokenizer, Waveform

SUFFIXES = {"text": "txt", "image": "png", "speech": "wav", "bytes": "bin"}


def write_part(part: Part, tokenizer: Tokenizer, stem: Path) -> Path:
    """Decode a part into a file of its modality's kind, and return its path."""
    path = stem.with_name(f"{stem.name}.{SUFFIXES.get(tokenizer.modality, 'bin')}")
    encoded = Encoded(ids=np.array(part.ids, np.int64), width=tokenizer.width)
    raw = tokenizer.decode(encoded)
    if isinstance(raw, str):
        path.write_bytes(raw.encode())
    elif isinstance(raw, bytes):
        path.write_bytes(raw)
    elif isinstance(raw, Waveform):
        soundfile.write(path, np.clip(raw.samples, -1, 1), raw.sample_rate_hz, subtype="PCM_16")
    else:
        raw.save(path)
    return path


def write_page(prompt: str, paths: Sequence[Path], page: Path) -> None:
    """An HTML page that shows files beside it one below the other."""
    shown = {
        ".txt": lambda path: tag("p", path.read_text(encoding="utf-8")),
        ".png": lambda path: tag("p", tag("img", src=path.name, alt=path.name)),
        ".wav": lambda path: tag("p", tag("audio", src=path.name, controls=True)),
        ".bin": lambda path: tag("p", tag("a", path.name, href=path.name)),
    }
    body = [shown[path.suffix](path) for path in paths]
    head = join(tag("meta", charset="utf-8"), tag("title", prompt or page.stem))
    style = tag("style", "p { white-space: pre-wrap }")
    text = join(head, style, tag("h1", prompt or page.stem), *body)
    page.write_text(f"<!doctype html>\n{text}\n", encoding="utf-8")
