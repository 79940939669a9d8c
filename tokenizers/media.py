"""Reads one picture or one sound from a file or bytes, as a person would see or hear it.

Everything a decoder may do to a job is bounded here: a picture's pixels, a sound's length and
channels, a file's size; pictures are tried with a fixed list of formats (Pillow's full list starts
other programs). What cannot be read is a SampleError with the reason.
"""

import io
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageCms, ImageOps

from plait.tokenizers.base import Waveform
from plait.tokenizers.errors import SampleError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 1 << 29
MAX_CHANNELS = 32
MAX_SAMPLES = 1800 * 48_000
"""Half an hour at 48 kHz: at the highest rate, a small file could ask for gigabytes."""
SAMPLE_RATES_HZ = (1_000, 768_000)
MAX_PROFILE_BYTES = 4 << 20
BAND_PIXELS = 1 << 20
_BLOCK = 1 << 16


def read_image(source: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB picture: upright, first frame, transparency on white, 16 bits scaled to 8.

    Colours of another profile (most CMYK pictures have one) are turned into sRGB.
    """
    stream = _open(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(stream, max_pixels)
    except SampleError:
        raise
    except Image.UnidentifiedImageError:
        raise SampleError("not a picture in a format that can be read") from None
    except Image.DecompressionBombError:
        raise SampleError(f"picture of too many pixels (at most {max_pixels:,})") from None
    except MemoryError:
        raise SampleError("not enough memory to decode the picture") from None
    except Exception as error:  # a decoder may raise anything on damaged data
        raise SampleError(f"damaged picture: {error or type(error).__name__}") from error


def read_audio(source: bytes | Path, *, max_duration_s: float = 1800.0) -> Waveform:
    """A mono sound at its own rate: channels are averaged, peaks above 1 scaled down."""
    stream = _open(source)
    try:
        with soundfile.SoundFile(stream) as sound:
            rate_hz = sound.samplerate
            samples = _read_mono(sound, max_duration_s)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise SampleError(f"not a sound that can be read: {reason}") from None
    if not len(samples):
        raise SampleError("the sound is empty")
    if not np.isfinite(samples).all():
        raise SampleError("the sound holds values that are not finite")
    peak = float(np.abs(samples).max())
    return Waveform(samples=samples / peak if peak > 1 else samples, sample_rate_hz=rate_hz)


def _open(source: bytes | Path) -> io.BytesIO:
    if isinstance(source, bytes):
        data = source
    elif not source.is_file():
        raise SampleError(f"missing file: {source.name}")
    elif source.stat().st_size > MAX_FILE_BYTES:
        raise SampleError(f"file of {source.stat().st_size:,} bytes (at most {MAX_FILE_BYTES:,})")
    else:
        data = _read(source)
    if not data:
        raise SampleError("the file is empty")
    return io.BytesIO(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(f"cannot read file: {error.strerror or error}") from error


def _decode(stream: io.BytesIO, max_pixels: int) -> Image.Image:
    with Image.open(stream, formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise SampleError(f"picture of {width}x{height} pixels (at most {max_pixels:,})")
        image.load()
        return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # damaged EXIF data does not make the picture unreadable
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if not image.has_transparency_data:
        return _in_srgb(image if image.mode == "CMYK" else image.convert("RGB"), image)
    return _on_white(_in_srgb(image if image.mode == "RGBA" else image.convert("RGBA"), image))


def _on_white(clear: Image.Image) -> Image.Image:
    """RGBA to RGB, some rows at a time: two more whole pictures would take 0.4 GB."""
    width, height = clear.size
    solid = Image.new("RGB", clear.size)
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        band = clear.crop((0, top, width, min(height, top + rows)))
        white = Image.new("RGBA", band.size, "white")
        solid.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return solid


def _in_srgb(image: Image.Image, read: Image.Image) -> Image.Image:
    """RGB or RGBA; `read` is the picture as it was read, whose profile is used if it fits."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    profile = read.info.get("icc_profile") or b""
    space = b"CMYK" if image.mode == "CMYK" else b"RGB "
    known = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    if known or profile[16:20] != space or len(profile) > MAX_PROFILE_BYTES:
        return image if image.mode == mode else image.convert(mode)
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, found, srgb, outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError):  # a damaged profile does not make it unreadable
        return image if image.mode == mode else image.convert(mode)


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (0..65535), or of floats in 0..1 or 0..255."""
    grey = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)
    largest = float(grey.max())
    if image.mode == "F":
        scale = 255.0 if largest <= 1 else 1.0
    else:
        scale = 1.0 if image.mode == "I" and largest <= 255 else 255 / 65535
    grey = np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[np.asarray(image) == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _read_mono(sound: soundfile.SoundFile, max_duration_s: float) -> np.ndarray:
    """Float32 [n], read in blocks: a header may promise any length."""
    low, high = SAMPLE_RATES_HZ
    if not low <= sound.samplerate <= high:
        raise SampleError(f"sample rate of {sound.samplerate} Hz (not in {low}..{high})")
    if sound.channels > MAX_CHANNELS:
        raise SampleError(f"sound of {sound.channels} channels (at most {MAX_CHANNELS})")
    limit = int(max_duration_s * sound.samplerate)
    blocks, length = [np.zeros(0, np.float32)], 0
    while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block.mean(1, dtype=np.float32))
        length += len(block)
        if length > limit:
            raise SampleError(f"sound of more than {max_duration_s:g} s")
        if length > MAX_SAMPLES:
            raise SampleError(f"sound of more than {MAX_SAMPLES:,} samples")
    return np.concatenate(blocks)
