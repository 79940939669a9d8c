"""The atlas shows each code as what it decodes to, the most used first."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plait.pipeline.inspect import atlas
from plait.pipeline.inspect.atlas import decode_codes, make_atlas
from plait.tokenizers import byte_patch
from plait.tokenizers.image import PatchKMeans
from plait.tokenizers.image_grid import PictureTokenizer

STRIDE = 4


def flat_patches(codes: int) -> PatchKMeans:
    """Code k is a patch of red k."""
    reds = torch.arange(codes) / 127.5 - 1
    centroids_KP = torch.full((codes, 3, STRIDE**2), -1.0)
    centroids_KP[:, 0] = reds[:, None]
    return PatchKMeans(centroids_KP.flatten(1), 16, STRIDE)


def sheet(src: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))))


def test_codes_stand_by_use_and_unused_ones_are_faint():
    counts = np.zeros(100, np.int64)
    counts[[7, 3, 50]] = [5, 9, 5]
    made = make_atlas(flat_patches(100), counts)
    assert made is not None and made.pitch == STRIDE + 1
    assert made.codes[:4] == [3, 7, 50, 0] and made.counts[:4] == [9, 5, 5, 0]
    assert (made.total, made.used, sorted(made.codes)) == (100, 3, list(range(100)))
    pixels = sheet(made.src)
    for at, code in enumerate(made.codes):
        row, column = divmod(at, made.columns)
        tile = pixels[row * 5 : row * 5 + 4, column * 5 : column * 5 + 4]
        assert (tile == [code, 0, 0, 255 if at < 3 else atlas.UNUSED]).all()
    assert (pixels[:, 4::5, 3] == 0).all()
    assert "97 are never used (faint, at the end)" in made.words
    assert "the most used is code 3, 9 times" in made.figure


def test_without_counts_codes_stand_by_id():
    made = make_atlas(flat_patches(60))
    assert made is not None and made.codes == list(range(60)) and not made.counts
    assert "by id" in made.words and "most used" not in made.figure


def test_atlas_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(atlas, "MOST_CODES", 64)
    centroids = torch.rand(200, 3 * 32**2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = make_atlas(PatchKMeans(centroids, 32, 32), np.arange(200))
    assert made is not None and made.codes == list(range(199, 135, -1))
    assert "The first 64 are shown." in made.words and "faint" not in made.words
    monkeypatch.setattr(atlas, "MOST_CHARACTERS", 9_000)
    smaller = make_atlas(PatchKMeans(centroids, 32, 32), np.arange(200))
    assert smaller is not None and len(smaller.src) <= 9_000 and len(smaller.codes) < 64


class TwoLevels(PictureTokenizer):
    """Red by the first level, green by the second."""

    def __init__(self) -> None:
        super().__init__(8, 2, 10, codebooks=2)

    def encode_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_ids(self, ids_BhwC: Tensor) -> Tensor:
        x_Bhw3 = torch.zeros(*ids_BhwC.shape[:3], 3)
        x_Bhw3[..., :2] = ids_BhwC / 10
        return x_Bhw3.permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)

    def config(self) -> dict[str, object]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {}

    @classmethod
    def from_files(cls, config, files):
        raise NotImplementedError


def test_other_levels_are_at_their_most_used():
    counts = np.zeros(20, np.int64)
    counts[[4, 16]] = 3  # the most used of either level: 4 and 6
    tiles = decode_codes(TwoLevels(), np.array([2, 13]), counts)
    means = tiles.reshape(2, -1, 3).mean(1)[:, :2] / 127.5 - 1
    assert np.allclose(means, [[0.2, 0.6], [0.4, 0.3]], atol=0.005)


def test_no_atlas_where_there_are_no_codes_of_pictures():
    assert make_atlas(byte_patch.fit([b""], byte_patch.FitOptions())) is None
    assert make_atlas(flat_patches(10), np.zeros(11)) is None
