"""Files made to break a decoder, through `plait shard`: tokenized or set aside with a reason.

Never a crash, never memory without bound: the job's peak is measured in a process of its own.
"""

import io
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, PngImagePlugin

from plait.tokenizers.base import Waveform
from plait.tokenizers.errors import SampleError
from plait.tokenizers.media import MAX_PIXELS, MAX_SAMPLES, read_audio, read_image
from plait.tokenizers.sound import prepare

MEGAPIXELS_231, MEGAPIXELS_623 = (15_200, 15_200), (24_960, 24_960)
"""As in Openclipart's own archive."""
MOST_BYTES = 1_200_000_000
"""What a job on the files below takes beside torch, at its peak."""
NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
TONE = (0.5 * np.sin(np.arange(4000) / 5)).astype(np.float32)


def image_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    output = io.BytesIO()
    image.save(output, kind, **options)
    return output.getvalue()


def sound_bytes(samples, rate_hz: int = 16_000, kind: str = "WAV", subtype=None) -> bytes:
    output = io.BytesIO()
    soundfile.write(output, samples, rate_hz, format=kind, subtype=subtype)
    return output.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_zeros(width: int, height: int, depth: int = 1, colours: int = 0) -> bytes:
    """A whole PNG of one colour: megabytes of pixels from a few kB."""
    row = -(-width * depth * {0: 1, 2: 3, 6: 4}[colours] // 8) + 1
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(image_bytes(Image.fromarray(NOISE), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    data = bytearray(image_bytes(Image.fromarray(NOISE), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(image_bytes(Image.fromarray(NOISE), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def ppm_header(width: int, height: int) -> bytes:
    return b"P6 %d %d 255\n" % (width, height) + bytes(100)


def tiff_header(width: int, height: int) -> bytes:
    """Its strip offsets and counts are those of a small picture."""
    entries = [
        *[(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)],
        *[(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, 100)],
    ]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


HEADERS = {
    "png": png_of_zeros,
    "jpeg": jpeg_header,
    "gif": gif_header,
    "bmp": bmp_header,
    "ppm": ppm_header,
    "tiff": tiff_header,
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("size", [MEGAPIXELS_231, MEGAPIXELS_623])
def test_bombs_of_every_format(kind, size):
    with pytest.raises(SampleError, match="pixels"):
        read_image(HEADERS[kind](*size))


def huge_text(kind: str) -> bytes:
    """A PNG whose compressed text or profile is 200 MB of zeros."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    name = {"zTXt": b"Comment\0\0", "iCCP": b"profile\0\0", "iTXt": b"Comment\0\1\0\0\0"}[kind]
    data = image_bytes(Image.fromarray(NOISE))
    return data[:33] + chunk(kind.encode(), name + body) + data[33:]


def huge_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * 30_000_000
    exif[0x0112] = 6
    return image_bytes(Image.fromarray(NOISE), "PNG", exif=exif)


def animation(kind: str, frames: int) -> bytes:
    pictures = [Image.fromarray(np.roll(NOISE, i, 0)) for i in range(frames)]
    return image_bytes(pictures[0], kind, save_all=True, append_images=pictures[1:])


def many_texts() -> bytes:
    texts = PngImagePlugin.PngInfo()
    for i in range(2000):
        texts.add_text(f"k{i}", "y" * 100_000, zip=True)
    return image_bytes(Image.fromarray(NOISE), "PNG", pnginfo=texts)


def silence(seconds: float, rate_hz: int, kind: str = "FLAC") -> bytes:
    """A long file of nothing, in a few kB a minute."""
    output = io.BytesIO()
    with soundfile.SoundFile(output, "w", rate_hz, 1, "PCM_16", format=kind) as file:
        left = int(seconds * rate_hz)
        while left > 0:
            file.write(np.zeros(min(left, 1 << 22), np.int16))
            left -= 1 << 22
    return output.getvalue()


def not_finite() -> bytes:
    bad = TONE.copy()
    bad[9] = np.nan
    return sound_bytes(bad, subtype="FLOAT")


PICTURE, SOUND = image_bytes(Image.fromarray(NOISE)), sound_bytes(TONE)
FINE = {
    "images/png_named.jpg": lambda: PICTURE,
    "images/jpeg_named.png": lambda: image_bytes(Image.fromarray(NOISE), "JPEG"),
    "images/one_pixel.png": lambda: image_bytes(Image.new("RGB", (1, 1), "red")),
    "images/one_column.png": lambda: png_of_zeros(1, 20_000, 8, 2),
    "images/wide.png": lambda: png_of_zeros(20_000, 1, 8, 6),
    "images/wide_and_tall.png": lambda: png_of_zeros(20_000, 2_400, 8, 6),
    "images/wide.webp": lambda: image_bytes(Image.new("RGB", (16_383, 2)), "WEBP"),
    "images/animated.gif": lambda: animation("GIF", 50),
    "images/animated.webp": lambda: animation("WEBP", 50),
    "images/animated.png": lambda: animation("PNG", 50),
    "images/profile.png": lambda: image_bytes(
        Image.fromarray(NOISE), icc_profile=os.urandom(1 << 19)
    ),
    "images/exif.png": huge_exif,
    "speech/wav_named.flac": lambda: SOUND,
    "speech/flac_named.mp3": lambda: sound_bytes(TONE, kind="FLAC"),
    "speech/bits8.wav": lambda: sound_bytes(TONE, subtype="PCM_U8"),
    "speech/bits24.wav": lambda: sound_bytes(TONE, subtype="PCM_24"),
    "speech/rate96.wav": lambda: sound_bytes(TONE, 96_000),
    "speech/one_sample.wav": lambda: sound_bytes(TONE[:1]),
    "speech/long.flac": lambda: silence(1700, 8_000),
}
"""Files that can be tokenized, by folder and name."""
SET_ASIDE = {
    "images/mp231.png": (lambda: png_of_zeros(*MEGAPIXELS_231), "pixels"),
    "images/mp623.jpg": (lambda: jpeg_header(*MEGAPIXELS_623), "pixels"),
    "images/html_named.png": (lambda: b"<!doctype html><p>404</p>", "not a picture"),
    "images/sound_named.png": (lambda: SOUND, "not a picture"),
    "images/half.png": (lambda: PICTURE[: len(PICTURE) // 2], "damaged"),
    "images/empty.png": (lambda: b"", "empty"),
    "images/text.png": (lambda: huge_text("zTXt"), "damaged"),
    "images/icc.png": (lambda: huge_text("iCCP"), "damaged"),
    "images/itxt.png": (lambda: huge_text("iTXt"), "damaged"),
    "images/texts.png": (many_texts, "damaged"),
    "speech/nothing.wav": (lambda: sound_bytes(TONE[:0]), "empty"),
    "speech/nan.wav": (not_finite, "not finite"),
    "speech/picture_named.wav": (lambda: PICTURE, "not a sound"),
    "speech/html_named.flac": (lambda: b"<html>" * 50, "not a sound"),
    "speech/half.flac": (lambda: sound_bytes(TONE, kind="FLAC")[:60], "sound"),
    "speech/hours.flac": (lambda: silence(7200, 8_000), "1800 s"),
    "speech/fast.flac": (lambda: silence(200, 655_350), "samples"),
}
"""Files that cannot, and a word of the reason."""
SCRIPT = """
import os, sys
from plait.pipeline import cli
from plait.tokenizers import image, speech
def peak():
    path = "/proc/self/status"
    status = open(path).read() if os.path.exists(path) else ""
    return 1024 * int((status.partition("VmHWM:")[2].split()[:1] or [0])[0])
before = peak()
code = cli.main(sys.argv[1:])
print("grown", peak() - before)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory, sample_tokenizers: Path, repository: Path
) -> tuple[Path, str]:
    """The stream of all the files, and what the command printed."""
    root = tmp_path_factory.mktemp("hostile")
    for name, make in {**FINE, **{k: v[0] for k, v in SET_ASIDE.items()}}.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(make())
    words = ["shard", f"images:{root / 'images'}", f"audio:{root / 'speech'}", "--out"]
    words += [str(root / "stream"), "--workers", "1"]
    for kind in ("image", "speech"):
        words += ["--tokenizer", str(sample_tokenizers / kind)]
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "stream", done.stdout


def test_nothing_is_lost_without_a_reason(shown: tuple[Path, str]):
    stream, _ = shown
    lines = (stream / "rejected.jsonl").read_text().splitlines()
    reasons = {Path(r["key"]).name: r["reason"] for r in map(json.loads, lines)}
    for name, (_, word) in SET_ASIDE.items():
        assert word in reasons.get(Path(name).name, "was tokenized"), name
    assert {Path(name).name for name in SET_ASIDE} == set(reasons)
    manifest = json.loads((stream / "stream.json").read_text())
    documents = sum(shard["documents"] for shard in manifest["shards"])
    assert documents == len(FINE)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_bounded(shown: tuple[Path, str]):
    grown = int(shown[1].rpartition("grown ")[2])
    assert 100_000_000 < grown < MOST_BYTES, f"{grown:,} bytes"


def test_the_largest_picture_that_is_read():
    width = 10_000
    assert read_image(png_of_zeros(width, MAX_PIXELS // width)).size[0] == width
    with pytest.raises(SampleError, match="pixels"):
        read_image(png_of_zeros(width, MAX_PIXELS // width + 1))


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (22_051, 24_000)]
)
@pytest.mark.parametrize("extra", [-1, 0, 1, 5000])
def test_a_long_sound_is_resampled_as_a_whole(from_hz, to_hz, extra, monkeypatch):
    """In pieces that are bounded, up to the last bits of float32."""
    step = from_hz // math.gcd(from_hz, to_hz)
    noise = np.random.default_rng(0).uniform(-1, 1, 3 * -(-5000 // step) * step + extra)
    wave = Waveform(samples=noise.astype(np.float32), sample_rate_hz=from_hz)
    whole = prepare(wave, to_hz)
    monkeypatch.setattr("plait.tokenizers.sound.PIECE", 5000)
    pieces = prepare(wave, to_hz)
    assert pieces.shape == whole.shape
    assert (pieces - whole).abs().max() < 1e-6


def test_the_longest_sound_that_is_read():
    rate_hz = 655_350
    assert len(read_audio(silence(60, rate_hz)).samples) == 60 * rate_hz
    with pytest.raises(SampleError, match=f"{MAX_SAMPLES:,} samples"):
        read_audio(silence(MAX_SAMPLES / rate_hz + 1, rate_hz))
