"""Triton without a GPU: an interpreter whose memory is fenced and whose bfloat16 is right.

Triton's interpreter reads and writes any address in silence and computes bfloat16 on bit patterns.
Here, in a process with `TRITON_INTERPRET=1`, every lane that is not masked must lie within a tensor
given to the kernel, products of bfloat16 are those of float32, conversions round to even, and any
other arithmetic on bfloat16 is refused (a kernel has to convert first). Inputs go into buffers with
margins of NaN (`fenced`), so that a read beyond one never finds the next. Fresh memory is filled
with NaN by `check.nan_filled`. Values are from programs run one after another: a race is not seen.
The interpreter's insides are no stable interface: this is for triton 3.8.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from .check import Op, nan_filled

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
compiled = pytest.mark.skipif(INTERPRETED, reason="is interpreted")
MARGIN = 1 << 14
"""Elements before and after a fenced tensor."""


def run_interpreted(*files: str) -> str:
    """Run test files in a process with the interpreter; its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fenced(x: Tensor) -> Tensor:
    """A copy between two margins of NaN, or of the largest integer."""
    bad = torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
    buffer = torch.full((x.numel() + 2 * MARGIN,), bad, dtype=x.dtype)
    inner = buffer[MARGIN : MARGIN + x.numel()].view(x.shape)
    return inner.copy_(x)


def fence(x: Tensor) -> Tensor:
    """`fenced`, and its gradient is fenced too."""
    return _Fence.apply(x)


class _Fence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return fenced(x)

    @staticmethod
    def backward(ctx, *dy: Tensor) -> Tensor:
        return fenced(dy[0])


def check_bfloat16(
    fast: Op, reference: Op, inputs: Sequence[Tensor], *, tolerance: float = 2e-5
) -> None:
    """bfloat16 in and out equals float32 throughout but for the last rounding, gradients too.

    Where factors of products are rounded on the way, a `tolerance` of the largest element says so.
    """
    leaves = [x.bfloat16().requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in leaves]
    wanted = reference(*wide)
    dy = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    with nan_filled():
        y = fast(*leaves)
        results = (y, *torch.autograd.grad(y, leaves, dy))
    expected = (wanted, *torch.autograd.grad(wanted, wide, dy.float()))
    for got, want in zip(results, expected, strict=True):
        assert got.dtype is torch.bfloat16
        largest = float(want.detach().abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(got.float(), want, rtol=2**-8, atol=tolerance * largest)


def install() -> None:
    """Fence the interpreter's memory and make its bfloat16 right; once a process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    if hasattr(builder, "fences"):
        return
    builder.fences = np.zeros((2, 0), np.uint64)
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    binary, unary, start = builder.binary_op, builder.unary_op, executor._init_args_hst
    convert = interpreter._convert_float

    def fenced_start(self, args_dev, kwargs):
        args, named = start(self, args_dev, kwargs)
        builder.fences = _extents([x for x in (*args, *named.values()) if isinstance(x, Tensor)])
        return args, named

    def fenced_load(self, ptrs, mask, other, *rest):
        _inside(builder.fences, ptrs, mask, "reads")
        return load(self, ptrs, mask, other, *rest)

    def fenced_store(self, ptrs, value, mask, *rest):
        _inside(builder.fences, ptrs, mask, "writes")
        return store(self, ptrs, value, mask, *rest)

    def rounded(data, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return (data.astype(np.uint32) << 16).view(np.float32)
        return convert(data, source, target, mode)

    def right_dot(self, a, b, d, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.cast_impl(x, tl.float32) for x in (a, b))
        return dot(self, a, b, d, *rest)

    def float_only(function):
        def checked(self, x, *rest):
            assert x.dtype.scalar != tl.bfloat16, "arithmetic on bfloat16: convert it first"
            return function(self, x, *rest)

        return checked

    executor._init_args_hst, interpreter._convert_float = fenced_start, rounded
    builder.create_masked_load, builder.create_masked_store = fenced_load, fenced_store
    builder.create_dot, builder.binary_op = right_dot, float_only(binary)
    builder.unary_op = float_only(unary)


def _extents(tensors: Sequence[Tensor]) -> np.ndarray:
    """[2, tensors]: the first and the end of each one's bytes."""
    spans = []
    for x in tensors:
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        end = x.data_ptr() + (last + 1) * x.element_size()
        spans.append((x.data_ptr(), end if x.numel() else x.data_ptr()))
    return np.array(spans, np.uint64).reshape(-1, 2).T


def _inside(fences: np.ndarray, ptrs, mask, verb: str) -> None:
    address_L = np.broadcast_to(ptrs.data, np.broadcast(ptrs.data, mask.data).shape)
    address_L = address_L[np.broadcast_to(mask.data, address_L.shape).astype(bool)]
    size = np.uint64(max(1, ptrs.get_element_ty().primitive_bitwidth // 8))
    good_L = np.zeros(address_L.shape, bool)
    for begin, end in fences.T:
        good_L |= (address_L >= begin) & (address_L + size <= end)
    assert good_L.all(), f"a program {verb} outside of its tensors, {(~good_L).sum()} lanes"


if INTERPRETED:
    install()
