"""What every tokenizer is: a folder on disk, and a class that turns raw samples into local ids.

A folder holds `config.json` (with `"kind": "module:Class"`, a class of this package) and the files
that the class itself asks for, `weights.safetensors` or a library's own model file. The
fingerprint is a hash of exactly these, so two folders with one fingerprint give the same ids.
`report.json`, written by `plait fit`, stands beside them and is no part of the fingerprint.
"""

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, TypeAlias

import numpy as np
import xxhash

from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

KNOWN = ("config.json", "report.json", "report.html", "rejected.jsonl")
"""Files of every tokenizer's folder; the others are the class's own."""
MODALITIES = ("text", "image", "speech", "bytes")
"""The modalities that plait knows by itself, in the order in which a vocabulary lays them out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Waveform:
    """Mono sound: `samples` float32 [n] in -1..1, at `sample_rate_hz`."""

    samples: np.ndarray
    sample_rate_hz: int


Progress = Callable[..., None]
"""How a long fit tells where it is: `progress(message, share)`, the share done so far, 0..1.

Figures by name, as in `progress("training", 0.3, loss=0.02)`, are shown, and drawn as curves in the
report's page.
"""


def ignore(message: str, share: float, **figures: float) -> None:
    """Show no progress."""


Raw: TypeAlias = "str | Image | Waveform | bytes"
"""A raw sample: text, an RGB picture, mono sound, or bytes, by the tokenizer's modality."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The tokens of one raw sample; all arrays have one entry a token unless said."""

    ids: np.ndarray
    """Local ids, an integer array [n] of values 0 .. vocab_size - 1."""
    width: int = 1
    """Tokens in a row of the grid: an image's columns, a sound's codebooks, 1 elsewhere."""
    patch_starts: np.ndarray | None = None
    """Bool [n]: True where a patch of bytes begins."""
    durations: np.ndarray | None = None
    """Uint8 [n]: frames that a de-duplicated speech unit lasts."""
    latents: np.ndarray | None = None
    """Floats [n, D], stored as float16: continuous values beside, or in place of, codes."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns: image (height, width), speech (frames, codebooks)."""
        return len(self.ids) // self.width, self.width


class Tokenizer(ABC):
    """Raw samples to modality-local ids and back.

    The same sample gives the same ids whatever the batch, its size and the number of threads.
    """

    modality: ClassVar[str]
    splittable: ClassVar[bool] = True
    """Whether a span may be cut at a multiple of its width (text, speech), or never (an image)."""
    vocab_size: int
    span_length: int | None = None
    """Tokens of every span, where that is fixed: an image is exactly its grid."""
    width: int = 1
    """Tokens in a row of the grid; a span may end, or be cut, only at a multiple of it."""

    tokens_per_s: float | None = None
    """Tokens in a second of sound, at most; None for what has no duration."""

    def allowed(self, position: int) -> range:
        """The local ids that may stand at a position of a span, counted from 0."""
        return range(self.vocab_size)

    @abstractmethod
    def encode_batch(self, samples: Sequence) -> list[Encoded]:
        """Encode raw samples of this modality, one `Encoded` each, in order."""

    @abstractmethod
    def decode(self, encoded: Encoded) -> Raw:
        """Turn ids back into text, a picture, a waveform or bytes (as near as the codes allow)."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """Everything but the files that `from_files` needs, as JSON values."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The model's files by name, the same bytes each time."""

    @classmethod
    @abstractmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild the tokenizer from what `config` and `files` gave."""

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the configuration and the files."""
        return files_fingerprint({"config.json": _config_bytes(self), **self.files()})

    def save(self, folder: str | Path) -> None:
        """Write the folder that `load_tokenizer` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)
        (folder / "config.json").write_bytes(_config_bytes(self))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load any tokenizer from its folder; raises ConfigError if it is none or is damaged."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        match = re.fullmatch(r"([a-z_]+):([A-Za-z]+)", config.get("kind", ""))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: no tokenizer here (config.json is missing); make one with `plait fit`"
        ) from None
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder}/config.json: not a tokenizer's configuration: {error}"
        ) from None
    if match is None:
        raise ConfigError(f'{folder}/config.json: "kind" should name a tokenizer, as "text:Text"')
    cls = _find_class(match[1], match[2], folder)
    files = {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in KNOWN
    }
    return cls.from_files(config, files)


def files_fingerprint(files: Mapping[str, bytes]) -> str:
    """The fingerprint of a tokenizer from the files of its folder."""
    digest = xxhash.xxh3_128(files["config.json"])
    for name, data in sorted(files.items()):
        if name not in KNOWN:
            digest.update(f"\0{name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()


def _find_class(module_name: str, class_name: str, folder: Path) -> type[Tokenizer]:
    if not (Path(__file__).parent / f"{module_name}.py").is_file():
        raise ConfigError(f"{folder}/config.json: plait has no tokenizer file {module_name}.py")
    cls = getattr(importlib.import_module(f"plait.tokenizers.{module_name}"), class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, Tokenizer)):
        raise ConfigError(f"{folder}/config.json: {module_name}.py has no tokenizer {class_name}")
    return cls


def _config_bytes(tokenizer: Tokenizer) -> bytes:
    cls = type(tokenizer)
    config = {"kind": f"{cls.__module__.rpartition('.')[2]}:{cls.__name__}", **tokenizer.config()}
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
