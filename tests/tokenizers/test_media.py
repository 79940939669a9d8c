import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageCms

from plait.tokenizers.errors import SampleError
from plait.tokenizers.media import MAX_CHANNELS, read_audio, read_image

COLOURS = np.zeros((6, 8, 3), np.uint8)
COLOURS[:, :4] = (200, 30, 30)
COLOURS[:3, 4:] = (20, 180, 40)


def image_bytes(image, kind="PNG", **options) -> bytes:
    output = io.BytesIO()
    image.save(output, kind, **options)
    return output.getvalue()


def sound_bytes(samples, rate_hz=16000, kind="WAV", subtype=None) -> bytes:
    output = io.BytesIO()
    soundfile.write(output, samples, rate_hz, format=kind, subtype=subtype)
    return output.getvalue()


def pixels(source) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = image_bytes(Image.fromarray(COLOURS), kind, **options)
    assert np.array_equal(pixels(data), COLOURS)


def test_from_a_path(tmp_path):
    path = tmp_path / "picture.jpg"  # the name need not be right
    path.write_bytes(image_bytes(Image.fromarray(COLOURS)))
    assert np.array_equal(pixels(path), COLOURS)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = pixels(image_bytes(Image.fromarray(COLOURS), "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(COLOURS, -1))


def test_transparency_is_on_white():
    half = Image.fromarray(np.full((2, 2, 4), (0, 0, 0, 128), np.uint8), "RGBA")
    assert abs(int(pixels(image_bytes(half))[0, 0, 0]) - 127) <= 1
    clear = Image.new("LA", (2, 2), (0, 0))
    assert (pixels(image_bytes(clear)) == 255).all()
    palette = Image.fromarray(COLOURS).quantize(4)
    index = palette.getpixel((0, 0))
    seen = pixels(image_bytes(palette, "PNG", transparency=index))
    assert (seen[:, :4] == 255).all()
    assert np.array_equal(seen[:, 4:], COLOURS[:, 4:])


def test_palette_cmyk_grey_and_bilevel():
    picture = Image.fromarray(COLOURS)
    assert np.array_equal(pixels(image_bytes(picture.quantize(8))), COLOURS)
    cmyk = pixels(image_bytes(picture.convert("CMYK"), "TIFF"))
    assert np.abs(cmyk.astype(int) - COLOURS).max() <= 2
    assert (pixels(image_bytes(Image.new("L", (2, 2), 77))) == 77).all()
    assert (pixels(image_bytes(Image.new("1", (2, 2), 1))) == 255).all()


def test_sixteen_bits_and_floats_are_scaled():
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert pixels(image_bytes(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 100, 255]
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert pixels(image_bytes(real, "TIFF"))[0, :, 1].tolist() == [0, 128, 255, 0]


def raw_png(depth, colours, row, *chunks) -> bytes:
    """A picture of one row whose bytes are given as PNG stores them."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    width = len(row) * 8 // depth // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colours, 0, 0, 0))
    body = b"".join(chunk(*c) for c in chunks) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def deep(*values) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (raw_png(16, 2, deep(25700, 0, 65535)), [[100, 0, 255]]),
        (raw_png(16, 6, deep(25700, 0, 65535, 0)), [[255, 255, 255]]),
        (raw_png(16, 4, deep(25700, 65535, 0, 0)), [[100] * 3, [255] * 3]),
        (raw_png(16, 0, deep(0, 25700), (b"tRNS", deep(0))), [[255] * 3, [100] * 3]),
        (raw_png(8, 0, b"\0d", (b"tRNS", deep(0))), [[255] * 3, [100] * 3]),
        (raw_png(8, 2, b"\0\0\0d\1\2", (b"tRNS", deep(0, 0, 0))), [[255] * 3, [100, 1, 2]]),
        (raw_png(2, 0, b"\x1b"), [[0] * 3, [85] * 3, [170] * 3, [255] * 3]),
        (
            raw_png(8, 3, b"\0\1", (b"PLTE", bytes(range(6))), (b"tRNS", b"\0")),
            [[255] * 3, [3, 4, 5]],
        ),
    ],
)
def test_every_way_of_png(data, seen):
    assert pixels(data)[0].tolist() == seen


def test_deep_tiffs_of_either_byte_order():
    for mode, order in (("I;16", "<"), ("I;16B", ">")):
        image = Image.frombytes(mode, (2, 1), struct.pack(f"{order}HH", 25700, 65535))
        assert pixels(image_bytes(image, "TIFF"))[0, :, 0].tolist() == [100, 255]


def test_cmyk_jpegs_are_stored_upside_down():
    picture = Image.fromarray(COLOURS).resize((32, 24), Image.Resampling.NEAREST)
    data = image_bytes(picture.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    assert np.abs(pixels(data)[4, 4].astype(int) - (200, 30, 30)).max() <= 2
    assert np.abs(pixels(data)[2, 29].astype(int) - (20, 180, 40)).max() <= 2


def odd_profile() -> bytes:
    """A profile whose red and blue are exchanged."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace("sRGB".encode("utf-16-be"), "odd.".encode("utf-16-be"))
    return data.replace(b"rXYZ", b"zXYZ").replace(b"bXYZ", b"rXYZ").replace(b"zXYZ", b"bXYZ")


def test_colours_of_another_profile():
    picture, odd = Image.new("RGB", (2, 2), (200, 30, 10)), odd_profile()
    for kind in ("PNG", "TIFF"):
        seen = pixels(image_bytes(picture, kind, icc_profile=odd))[0, 0].astype(int)
        assert np.abs(seen - (10, 30, 200)).max() <= 3
    clear = picture.convert("RGBA")
    clear.putpixel((0, 0), (200, 30, 10, 0))
    seen = pixels(image_bytes(clear, icc_profile=odd)).astype(int)
    assert (seen[0, 0] == 255).all() and np.abs(seen[1, 1] - (10, 30, 200)).max() <= 3
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk, cut = odd[:16] + b"CMYK" + odd[20:], odd[:20] + b"x" * 99
    for profile in (srgb, odd[:100], cmyk, cut):
        assert pixels(image_bytes(picture, icc_profile=profile))[0, 0].tolist() == [200, 30, 10]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "MPO"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    data = image_bytes(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 2


def huge_png(width, height) -> bytes:
    """A valid header that promises a huge picture, and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    data = (
        struct.pack(">I", 4)
        + b"IDAT"
        + bytes(4)
        + struct.pack(">I", zlib.crc32(b"IDAT" + bytes(4)))
    )
    return b"\x89PNG\r\n\x1a\n" + length + chunk + check + data


@pytest.mark.parametrize("size", [(30_000, 30_000), (2_000_000_000, 2), (8000, 8000)])
def test_huge_dimensions_are_refused_before_decoding(size):
    with pytest.raises(SampleError, match="pixels"):
        read_image(huge_png(*size))


def test_max_pixels():
    data = image_bytes(Image.fromarray(COLOURS))
    assert read_image(data, max_pixels=48).size == (8, 6)
    with pytest.raises(SampleError, match="8x6"):
        read_image(data, max_pixels=47)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_truncated_pictures(kind):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = image_bytes(Image.fromarray(noise), kind)
    with pytest.raises(SampleError):
        read_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"just some text in a .png", b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_picture(data):
    with pytest.raises(SampleError, match="not a picture"):
        read_image(data)


def test_damaged_bytes_never_raise_anything_else():
    random = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = bytearray(image_bytes(Image.fromarray(COLOURS).resize((32, 32)), kind))
        for _ in range(40):
            damaged = bytearray(data)
            for place in random.integers(0, len(data), 8):
                damaged[place] = int(random.integers(256))
            with suppress(SampleError):
                read_image(bytes(damaged), max_pixels=100_000)


@pytest.mark.parametrize("read", [read_image, read_audio])
def test_empty_missing_and_folder(read, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(SampleError, match="empty"):
        read(tmp_path / "empty")
    with pytest.raises(SampleError, match="empty"):
        read(b"")
    with pytest.raises(SampleError, match="missing"):
        read(tmp_path / "absent")
    with pytest.raises(SampleError, match="missing"):
        read(tmp_path)


TONE = (0.5 * np.sin(np.arange(1600) / 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "error"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1), ("MP3", 0.1)]
)
def test_sound_formats(kind, error):
    sound = read_audio(sound_bytes(TONE, kind=kind))
    assert sound.sample_rate_hz == 16000
    assert sound.samples.dtype == np.float32
    assert np.abs(sound.samples[400:1200] - TONE[400:1200]).mean() < error or kind == "MP3"
    assert abs(len(sound.samples) - 1600) < (3000 if kind == "MP3" else 1)


@pytest.mark.parametrize("rate_hz", [8000, 44100, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("subtype", "error"),
    [
        *[("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-6)],
        *[("FLOAT", 1e-6), ("DOUBLE", 1e-6), ("ULAW", 2e-2), ("ALAW", 2e-2)],
    ],
)
def test_every_width_rate_and_number_of_channels(rate_hz, channels, subtype, error):
    samples = np.repeat(TONE[:, None], channels, 1)
    sound = read_audio(sound_bytes(samples, rate_hz, subtype=subtype))
    assert sound.sample_rate_hz == rate_hz and sound.samples.shape == TONE.shape
    assert np.abs(sound.samples - TONE).max() <= error


def test_channels_are_averaged_and_peaks_scaled():
    stereo = np.stack([TONE, np.zeros_like(TONE)], 1)
    assert np.allclose(read_audio(sound_bytes(stereo)).samples, TONE / 2, atol=1e-4)
    loud = read_audio(sound_bytes(4 * TONE, subtype="FLOAT")).samples
    assert np.abs(loud).max() == 1
    assert np.allclose(loud, TONE / np.abs(TONE).max(), atol=1e-6)


def test_sounds_that_are_refused():
    with pytest.raises(SampleError, match="empty"):
        read_audio(sound_bytes(np.zeros(0, np.float32)))
    for value in (np.nan, np.inf):
        bad = TONE.copy()
        bad[7] = value
        with pytest.raises(SampleError, match="not finite"):
            read_audio(sound_bytes(bad, subtype="FLOAT"))
    with pytest.raises(SampleError, match=r"more than 0\.05 s"):
        read_audio(sound_bytes(TONE), max_duration_s=0.05)
    with pytest.raises(SampleError, match="sample rate of 100 Hz"):
        read_audio(sound_bytes(TONE, rate_hz=100))
    with pytest.raises(SampleError, match="channels"):
        read_audio(sound_bytes(np.zeros((9, MAX_CHANNELS + 1), np.float32)))


@pytest.mark.parametrize("data", [b"text named .wav", b"RIFF\x00\x00", b"\xff\xfb\x90\x00" * 3])
def test_what_is_no_sound(data):
    with pytest.raises(SampleError, match="not a sound"):
        read_audio(data)


def test_a_header_that_promises_more_than_there_is():
    data = bytearray(sound_bytes(TONE))
    data[40:44] = struct.pack("<I", 2**31 - 2)
    try:
        sound = read_audio(bytes(data))
    except SampleError:
        return
    assert len(sound.samples) <= 1600
