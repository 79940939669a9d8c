"""The one choice that every op makes: its definition or a faster path, logged once an op.

`PLAIT_KERNELS=reference` in the environment forces the definition everywhere. It is read at each
call; inside `torch.compile` it is read when the function is traced.
"""

import logging
import os
from functools import cache

import torch

log = logging.getLogger("plait.kernels")


@torch.compiler.assume_constant_result
def choose(op: str, fast: str) -> str:
    """`fast`, or "reference" where the environment says so.

    >>> choose("an op", "fast") in ("fast", "reference")
    True
    """
    forced = os.environ.get("PLAIT_KERNELS", "")
    if forced not in ("", "reference"):
        raise ValueError(f"PLAIT_KERNELS={forced!r}: it can be 'reference' or unset")
    path = forced or fast
    _log_once(op, path)
    return path


@cache
def _log_once(op: str, path: str) -> None:
    log.info("%s: %s", op, path)
