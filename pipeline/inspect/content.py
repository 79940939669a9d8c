"""What a page shows for tokens: text and bytes in their pieces, pictures as PNG, sound as FLAC."""

import base64
import io
from dataclasses import asdict

import numpy as np
from PIL import Image

from plait.pipeline.inspect.token_pieces import NOTHING, piece_sizes, pieces_of
from plait.tokenizers.base import Encoded, Raw, Tokenizer, Waveform

__all__ = ["Content", "decode", "note", "piece_sizes", "png_url", "show"]

SAMPLE_RATE_HZ = 16_000
SOUND_S = 12.0
"""Seconds of a sound that can be heard."""
SIDE = 256
"""Pixels of a picture's longer side, at most."""
PEAKS = 200
"""Strokes of a waveform."""

Content = dict[str, object]
"""JSON values for the page's script: `kind`, and what that kind needs."""


def decode(tokenizer: Tokenizer, encoded: Encoded, before: np.ndarray = NOTHING) -> Content:
    """What the page shows for tokens, by what they decode to; `before` as in `pieces_of`."""
    if tokenizer.modality in ("text", "bytes"):
        pieces = asdict(pieces_of(tokenizer, encoded, before))
        tokens: Content = {"kind": "tokens"}
        return tokens | {name: value for name, value in pieces.items() if value}
    if not getattr(tokenizer, "decodes", True):
        return note("its tokenizer does not decode")
    shown = show(tokenizer.decode(encoded))
    return shown | _codes(encoded) if shown["kind"] == "image" else shown


def show(raw: Raw, side: int = SIDE) -> Content:
    """What the page shows for a picture or a sound, and words for the rest."""
    if isinstance(raw, Image.Image):
        return {"kind": "image", "src": _data_url("image/png", _png(raw.convert("RGB"), side))}
    if isinstance(raw, Waveform):
        return _sound(raw)
    return note(repr(raw)[:2000])


def note(words: str) -> Content:
    """Words in place of a content."""
    return {"kind": "note", "text": words}


def png_url(image: Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _data_url("image/png", buffer.getvalue())


def _codes(encoded: Encoded) -> Content:
    """The codes of a picture and their columns; of continuous latents there are none."""
    if encoded.latents is not None:
        return {}
    return {"ids": encoded.ids.tolist(), "columns": encoded.width}


def _sound(sound: Waveform) -> Content:
    whole = len(sound.samples) / sound.sample_rate_hz
    short = sound.samples[: int(SOUND_S * sound.sample_rate_hz)]
    samples = _at_16_khz(Waveform(samples=short, sample_rate_hz=sound.sample_rate_hz))
    parts = np.array_split(samples, min(PEAKS, max(len(samples), 1)))
    peaks = [round(float(np.abs(part).max(initial=0)), 2) for part in parts]
    content: Content = {"kind": "audio", "src": _data_url("audio/flac", _flac(samples))}
    cut = {"note": f"the first {SOUND_S:g} of {whole:,.1f} seconds"} if whole > SOUND_S else {}
    return content | {"peaks": peaks} | cut


def _at_16_khz(sound: Waveform) -> np.ndarray:
    if sound.sample_rate_hz == SAMPLE_RATE_HZ:
        return sound.samples
    import torch
    import torchaudio.functional

    samples = torch.from_numpy(np.ascontiguousarray(sound.samples))
    return torchaudio.functional.resample(samples, sound.sample_rate_hz, SAMPLE_RATE_HZ).numpy()


def _flac(samples: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), SAMPLE_RATE_HZ, "PCM_16", format="FLAC")
    return buffer.getvalue()


def _png(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
