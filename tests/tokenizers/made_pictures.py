"""Pictures for the tests of image tokenizers."""

import numpy as np
from PIL import Image


def picture(seed, width=48, height=40):
    """Coloured discs on white, as clipart is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 255, np.uint8)
    for _ in range(4):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(3, 14)
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)
