"""Orders in which a grid of codes, T frames of L levels, stands in one row of tokens.

`flatten` puts frame after frame, so a row may end, or be cut, after any frame. `delay` moves level
l down by l frames (MusicGen, arXiv:2306.05284, section 2.1), so that a model of L heads predicts
all levels of a row at once. `coarse_first` puts all of level 0 before level 1 (AudioLM,
arXiv:2209.03143), here within blocks of a few frames, so that sound may go on for ever.

In the one stream of plait, where a token is predicted from those before it, `flatten` and
`coarse_first` serve: what may stand at a place follows from the place alone, and a row may end
after any frame or block. `delay` does not: the filler in its last corner depends on the length, a
cut row loses levels, and without heads for several tokens it is only longer. It is here for models
of several streams.

T frames, L levels, B frames of a block.
"""

import numpy as np


def flatten(codes_TL: np.ndarray) -> np.ndarray:
    """Frame by frame, coarse level first, [T * L].

    >>> flatten(np.array([[1, 2], [3, 4], [5, 6]])).tolist()
    [1, 2, 3, 4, 5, 6]
    """
    _check_grid(codes_TL)
    return codes_TL.reshape(-1)


def unflatten(row: np.ndarray, levels: int) -> np.ndarray:
    """The grid [T, L] that `flatten` was given; ValueError if it is no whole number of frames."""
    _check_row(row, levels)
    return row.reshape(-1, levels)


def delay(codes_TL: np.ndarray, filler: int) -> np.ndarray:
    """Level l begins at row l: [T + L - 1, L], with `filler` in the two corners; [0, L] for T = 0.

    >>> delay(np.array([[1, 2], [3, 4], [5, 6]]), 0).tolist()
    [[1, 0], [3, 2], [5, 4], [0, 6]]
    """
    _check_grid(codes_TL)
    frames, levels = codes_TL.shape
    rows = np.full((frames + levels - 1 if frames else 0, levels), filler, codes_TL.dtype)
    for level in range(levels):
        rows[level : level + frames, level] = codes_TL[:, level]
    return rows


def undelay(rows: np.ndarray) -> np.ndarray:
    """The grid [T, L] of delayed rows; what the corners hold is not looked at.

    ValueError if there are rows, but fewer than levels: not one frame is whole.
    """
    _check_grid(rows)
    count, levels = rows.shape
    if 0 < count < levels:
        raise ValueError(f"{count} delayed rows of {levels} levels hold no whole frame")
    frames = max(count - levels + 1, 0)
    codes_TL = np.empty((frames, levels), rows.dtype)
    for level in range(levels):
        codes_TL[:, level] = rows[level : level + frames, level]
    return codes_TL


def coarse_first(codes_TL: np.ndarray, block: int) -> np.ndarray:
    """All of level 0, then all of level 1, in each block of `block` frames, [T * L].

    A last block may hold fewer frames. With `block` >= T it is the whole sound; 1 is `flatten`.

    >>> coarse_first(np.array([[1, 2], [3, 4], [5, 6]]), 2).tolist()
    [1, 3, 2, 4, 5, 6]
    """
    _check_grid(codes_TL)
    _check_block(block)
    whole = len(codes_TL) - len(codes_TL) % block
    blocks = codes_TL[:whole].reshape(-1, block, codes_TL.shape[1]).swapaxes(1, 2)
    return np.concatenate([blocks.reshape(-1), codes_TL[whole:].T.reshape(-1)])


def from_coarse_first(row: np.ndarray, levels: int, block: int) -> np.ndarray:
    """The grid [T, L] that `coarse_first` was given; ValueError for a part of a frame."""
    _check_row(row, levels)
    _check_block(block)
    whole = len(row) - len(row) % (block * levels)
    blocks = row[:whole].reshape(-1, levels, block).swapaxes(1, 2).reshape(-1, levels)
    return np.concatenate([blocks, row[whole:].reshape(levels, -1).T])


def _check_grid(codes_TL: np.ndarray) -> None:
    if codes_TL.ndim != 2 or not codes_TL.shape[1]:
        raise ValueError(f"a grid of codes is [T, L] with L >= 1, not {codes_TL.shape}")


def _check_row(row: np.ndarray, levels: int) -> None:
    if levels < 1 or row.ndim != 1 or len(row) % levels:
        raise ValueError(f"{row.shape} tokens are no whole number of frames of {levels} levels")


def _check_block(block: int) -> None:
    if block < 1:
        raise ValueError(f"a block has at least 1 frame, not {block}")
