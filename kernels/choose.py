"""The one choice that every op makes: its definition or a faster path, logged once an op.

`PLAIT_KERNELS=reference` in the environment forces the definition everywhere. It is read at each
call; inside `torch.compile` it is read when the function is traced.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

log = logging.getLogger("plait.kernels")
Function = TypeVar("Function", bound=Callable)


def constant(function: Function) -> Function:
    """Lets `torch.compile` run the function when it traces and take the result as a constant.

    It is `torch.compiler.assume_constant_result`, which would import the whole compiler: a second
    for every command that never compiles.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@constant
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


def triton_runs(device: str, dtype: "torch.dtype") -> bool:
    """Whether Triton's kernels serve: float32 or bfloat16 on CUDA or ROCm, and triton is there."""
    served = device == "cuda" and str(dtype) in ("torch.float32", "torch.bfloat16")
    return served and importlib.util.find_spec("triton") is not None


@cache
def _log_once(op: str, path: str) -> None:
    log.info("%s: %s", op, path)
