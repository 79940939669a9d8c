"""The atlas of an image codebook: each code as the patch it decodes to, in one picture.

A code is decoded in a 3 by 3 field of itself, of which the middle is shown: of plain patches that
is the patch, of a network what it makes of the code among its like. Of residual codes, the other
levels are at their most used, or at 0. The picture is bounded in tiles and in size.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from plait.pipeline.inspect.content import png_url
from plait.pipeline.inspect.markup import Markup, tag
from plait.tokenizers.base import Tokenizer

MOST_CODES = 1536
COLUMNS = 48
MOST_CHARACTERS = 300_000
"""Of the picture in the page."""
MOST_PIXELS = 16
"""Pixels of a tile's side."""
TILE_WIDTH = 20
"""Pixels of a tile on the page, about."""
UNUSED = 90
"""Opacity of codes that are never used, of 255."""
BATCH = 128
"""Codes that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """Codes in the order of their tiles."""

    src: str
    pitch: int
    """Pixels from one tile to the next."""
    columns: int
    codes: list[int]
    counts: list[int]
    """How often each is used; empty where nothing was counted."""
    total: int
    """Codes there are."""
    used: int
    levels: int
    """Codebooks; id = level * codes + code."""

    @property
    def data(self) -> dict[str, object]:
        """What the page's script needs to name a tile."""
        return {"columns": self.columns, "codes": self.codes, "counts": self.counts}

    @property
    def words(self) -> str:
        """What is shown."""
        few = f" The first {len(self.codes):,} are shown." if len(self.codes) < self.total else ""
        field = "Each is the middle of what a 3 by 3 field of the code decodes to"
        others = "their most used" if self.counts else "code 0"
        field += f", the other levels at {others}." if self.levels > 1 else "."
        if not self.counts:
            return f"Each of the {self.total:,} codes, by id.{few} {field}"
        never = self.total - self.used
        unused = f"; {never:,} are never used{' (faint, at the end)' if not few else ''}"
        return f"Each of the {self.total:,} codes, the most used first{unused}.{few} {field}"

    @property
    def figure(self) -> Markup:
        """The picture; the page's script names the tile under the pointer."""
        label = f"Atlas of {len(self.codes):,} codes"
        if self.counts:
            label += f"; the most used is code {self.codes[0]}, {self.counts[0]:,} times"
        width = self.columns * self.pitch * max(1, round(TILE_WIDTH / self.pitch))
        image = tag("img", src=self.src, alt=label, style=f"width:{width}px")
        grid = tag("div", image, class_="cells")
        tip = tag("p", "Point at a tile, or step through them with the arrow keys.", class_="tip")
        return tag("figure", tag("div", grid, class_="scroll"), tip, class_="atlas")


def make_atlas(tokenizer: Tokenizer, counts: np.ndarray | None = None) -> Atlas | None:
    """The atlas, the most used codes first, or by id without counts; None where there is none."""
    from plait.tokenizers.image_grid import PictureTokenizer

    if not isinstance(tokenizer, PictureTokenizer):
        return None
    total = tokenizer.vocab_size
    if counts is not None and len(counts) != total:
        return None
    order = np.arange(total) if counts is None else np.argsort(-counts, kind="stable")
    order = order[:MOST_CODES]
    tiles_KSS3 = decode_codes(tokenizer, order, counts)
    used_K = None if counts is None else counts[order] > 0
    src, pitch, n = _fitting(tiles_KSS3, used_K)
    return Atlas(
        src=src,
        pitch=pitch,
        columns=min(COLUMNS, n),
        codes=order[:n].tolist(),
        counts=[] if counts is None else counts[order[:n]].tolist(),
        total=total,
        used=total if counts is None else int((counts > 0).sum()),
        levels=tokenizer.codebooks,
    )


def decode_codes(tokenizer, codes_K: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """The tile of each id of a PictureTokenizer, uint8 [K, S, S, 3], S its stride."""
    import torch

    books, size, stride = tokenizer.codebooks, tokenizer.codes, tokenizer.stride
    usual = np.zeros(books, np.int64) if counts is None else counts.reshape(books, size).argmax(1)
    ids_KC = np.tile(usual, (len(codes_K), 1))
    ids_KC[np.arange(len(codes_K)), codes_K // size] = codes_K % size
    tiles = []
    for start in range(0, len(ids_KC), BATCH):
        ids_B11C = torch.from_numpy(ids_KC[start : start + BATCH])[:, None, None]
        x_B3HW = tokenizer.decode_ids(ids_B11C.expand(-1, 3, 3, -1).contiguous())
        middle = x_B3HW[:, :, stride : 2 * stride, stride : 2 * stride]
        pixels = ((middle.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        tiles.append(pixels.permute(0, 2, 3, 1).numpy())
    return np.concatenate(tiles)


def _fitting(tiles_KSS3: np.ndarray, used_K: np.ndarray | None) -> tuple[str, int, int]:
    """A picture that is not too large, its pitch and how many codes it shows."""
    side, n = min(tiles_KSS3.shape[1], MOST_PIXELS), len(tiles_KSS3)
    while True:
        src = png_url(_sheet(tiles_KSS3[:n], None if used_K is None else used_K[:n], side))
        if len(src) <= MOST_CHARACTERS:
            return src, side + 1, n
        side, n = (side // 2, n) if side > 8 else (side, n // 2)


def _sheet(tiles_KSS3: np.ndarray, used_K: np.ndarray | None, side: int) -> Image.Image:
    """Tiles in rows of COLUMNS, a clear pixel between them; unused ones are faint."""
    columns = min(COLUMNS, len(tiles_KSS3))
    rows = -(-len(tiles_KSS3) // columns)
    sheet = Image.new("RGBA", (columns * (side + 1), rows * (side + 1)))
    for number, tile_SS3 in enumerate(tiles_KSS3):
        tile = Image.fromarray(tile_SS3).resize((side, side), Image.Resampling.BOX)
        tile.putalpha(255 if used_K is None or used_K[number] else UNUSED)
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * (side + 1), row * (side + 1)))
    return sheet
