"""The checks that every op gets: values, gradients, expanded gradients, compilation, schema.

They run with fresh memory filled with NaN, so that an element nobody wrote is found.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Op = Callable[..., Tensor]


@contextlib.contextmanager
def nan_filled() -> Iterator[None]:
    """Fresh memory of torch holds NaN (or the largest integer) inside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(
    fast: Op,
    reference: Op,
    inputs: Sequence[Tensor],
    *,
    tolerance: float = 1e-5,
    floor: float = 1e-3,
    compiled: bool = False,
) -> None:
    """`fast(*inputs)` equals `reference(*inputs)`, and so do all gradients.

    The error is relative to the largest element of each result, or to `floor`. `compiled` runs the
    function under `torch.compile(fullgraph=True)` as well, which takes seconds.
    """
    with nan_filled():
        wanted, wanted_grads = _run(reference, inputs, _cotangent)
        _close(_run(fast, inputs, _cotangent), (wanted, wanted_grads), tolerance, floor)
        _, summed = _run(reference, inputs, _expanded)
        _close(_run(fast, inputs, _expanded), (wanted, summed), tolerance, floor)
        if compiled:
            torch._dynamo.reset()
            whole = torch.compile(fast, fullgraph=True, backend="aot_eager")
            _close(_run(whole, inputs, _cotangent), (wanted, wanted_grads), tolerance, floor)


def check_op(op, args: tuple) -> None:
    """A custom op's schema, fake function and gradient hold together."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
        torch.library.opcheck(op, args)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that torch's tensors held on the CPU at once, above what they hold now."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _run(function: Op, inputs: Sequence[Tensor], cotangent) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    y = function(*leaves)
    floats = [x for x in leaves if x.requires_grad]
    gradients = torch.autograd.grad(y, floats, cotangent(y))
    return y.detach(), [dx.to_dense() if dx.is_sparse else dx for dx in gradients]


def _cotangent(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)


def _expanded(y: Tensor) -> Tensor:
    return torch.ones((), dtype=y.dtype).expand(y.shape)


def _close(got, wanted, tolerance: float, floor: float) -> None:
    for a, b in zip([got[0], *got[1]], [wanted[0], *wanted[1]], strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(scale, floor))
