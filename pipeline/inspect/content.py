"""What a page shows for tokens: text and bytes in their pieces, pictures as PNG, sound as WAV."""

import base64
import io
import wave
from itertools import pairwise

import numpy as np
from PIL import Image

from plait.tokenizers.base import Encoded, Raw, Tokenizer, Waveform

MOST_PIECES = 600
"""Most tokens of a span that are spelled out."""
SAMPLE_RATE_HZ = 16_000

Content = dict[str, str | list[str] | list[float]]
"""JSON values for the page's script: `kind`, and what that kind needs."""


def decode(tokenizer: Tokenizer, encoded: Encoded) -> Content:
    """What the page shows for tokens, by what they decode to."""
    if tokenizer.modality == "text":
        return {"kind": "tokens", "pieces": text_pieces(tokenizer, encoded.ids)}
    if tokenizer.modality == "bytes":
        return {"kind": "tokens", "pieces": byte_pieces(tokenizer, encoded)}
    return show(tokenizer.decode(encoded))


def show(raw: Raw) -> Content:
    """What the page shows for a picture or a sound, and words for the rest."""
    if isinstance(raw, Image.Image):
        return {"kind": "image", "src": _data_url("image/png", _png(raw.convert("RGB")))}
    if isinstance(raw, Waveform):
        samples = _at_16_khz(raw)
        peaks = [round(float(np.abs(part).max(initial=0)), 3) for part in _parts(samples, 200)]
        return {"kind": "audio", "src": _data_url("audio/wav", _wav(samples)), "peaks": peaks}
    return note(repr(raw)[:2000])


def note(words: str) -> Content:
    """Words in place of a content."""
    return {"kind": "note", "text": words}


def text_pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Text by token; neighbours that only together are valid UTF-8 stand together."""
    return [*(_visible(text) for text, _ in _text_groups(tokenizer, ids)), *_more(len(ids))]


def byte_pieces(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """Bytes by patch, as text where they are readable and as \\x00 where not."""
    found = []
    for a, b in pairwise(_byte_cuts(encoded)):
        raw = tokenizer.decode(Encoded(ids=encoded.ids[a:b]))
        assert isinstance(raw, bytes)
        found.append(_visible(raw.decode("utf-8", errors="backslashreplace")))
    return [*found, *_more(len(encoded.ids))]


def piece_sizes(tokenizer: Tokenizer, encoded: Encoded) -> list[int]:
    """How many tokens each piece of a text or of bytes holds, but for the last, ` ... more`."""
    if tokenizer.modality == "text":
        return [n for _, n in _text_groups(tokenizer, encoded.ids)]
    return [b - a for a, b in pairwise(_byte_cuts(encoded))]


def _text_groups(tokenizer: Tokenizer, ids: np.ndarray) -> list[tuple[str, int]]:
    found, waiting = [], []
    for local in ids[:MOST_PIECES].tolist():
        waiting.append(local)
        text = str(tokenizer.decode(Encoded(ids=np.array(waiting, np.int64))))
        if "\ufffd" not in text or len(waiting) == 4:
            found.append((text, len(waiting)))
            waiting = []
    if waiting:
        text = str(tokenizer.decode(Encoded(ids=np.array(waiting, np.int64))))
        found.append((text, len(waiting)))
    return found


def _byte_cuts(encoded: Encoded) -> list[int]:
    starts = encoded.patch_starts
    first = [] if starts is None else np.flatnonzero(starts[:MOST_PIECES]).tolist()
    return [*sorted({0, *first}), min(len(encoded.ids), MOST_PIECES)]


def _more(n: int) -> list[str]:
    return [f" ... {n - MOST_PIECES:,} more"] if n > MOST_PIECES else []


def _visible(text: str) -> str:
    """Control characters by name, a line's end as a sign and an end; direction cannot be turned."""
    text = text.replace("\n", "\u21b5\n").replace("\t", "\u2192\t")
    shown = (c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return "".join(shown)


def _at_16_khz(sound: Waveform) -> np.ndarray:
    if sound.sample_rate_hz == SAMPLE_RATE_HZ:
        return sound.samples
    import torch
    import torchaudio.functional

    samples = torch.from_numpy(np.ascontiguousarray(sound.samples))
    return torchaudio.functional.resample(samples, sound.sample_rate_hz, SAMPLE_RATE_HZ).numpy()


def _parts(samples: np.ndarray, count: int) -> list[np.ndarray]:
    return np.array_split(samples, min(count, max(len(samples), 1)))


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
