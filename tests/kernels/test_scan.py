import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import choose, compile_c, scan, scan_c
from plait.kernels.permute import permute_rows
from plait.kernels.scan import reference, scan_op, selective_scan, selective_scan_step

from .check import check, check_op

PATHS = ["c", "chunked"]


def inputs(B, T, I, S, dtype=torch.float32):
    torch.manual_seed(0)
    u, B_BTS, C_BTS = (torch.randn(B, T, n, dtype=dtype) for n in (I, S, S))
    dt = F.softplus(torch.randn(B, T, I, dtype=dtype) - 2)
    A, D = -torch.rand(I, S, dtype=dtype) * S, torch.randn(I, dtype=dtype)
    return [u, dt, A, B_BTS, C_BTS, D], torch.rand(B, T) < 0.05


def compare(path, *sizes, **options):
    tensors, reset = inputs(*sizes)
    check(
        lambda *x: scan_op(*x, reset, path)[0],
        lambda *x: reference(*x, reset)[0],
        tensors,
        **options,
    )


@pytest.fixture(autouse=True)
def compiler():
    assert scan_c.available(), "these tests want a C compiler"


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=15, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65]),
    I=st.sampled_from([1, 5, 31, 32, 33, 70]),
    S=st.sampled_from([1, 3, 16]),
)
def test_equals_the_definition(path, B, T, I, S):
    compare(path, B, T, I, S)


@pytest.mark.parametrize("path", PATHS)
def test_a_thousand_steps(path):
    compare(path, 1, 1000, 9, 4)


@pytest.mark.parametrize("path", PATHS)
def test_the_op_holds_together_and_compiles(path):
    tensors, reset = inputs(2, 40, 6, 3)
    check_op(scan_op, (*(x.requires_grad_() for x in tensors), reset, path))
    compare(path, 2, 40, 6, 3, compiled=True)


@pytest.mark.parametrize("path", [*PATHS, "reference"])
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_in_another_order(path, compiled, monkeypatch):
    """Steps whose rows are scattered over both sequences give what they give in order."""
    monkeypatch.setattr(scan, "choose", lambda op, fast: path)
    tensors, reset = inputs(2, 75, 37, 3)
    place_N = torch.randperm(150)
    places = place_N, place_N.argsort()
    rows = (0, 1, 3, 4)

    def moved(*x):
        scattered = [permute_rows(t, *places[::-1]) if i in rows else t for i, t in enumerate(x)]
        return permute_rows(selective_scan(*scattered, reset, places), *places)

    if compiled and path == "reference":
        pytest.skip("the definition is a loop that a compiler would unroll")
    check(moved, lambda *x: reference(*x, reset)[0], tensors, compiled=compiled)


def test_the_op_with_places_holds_together():
    tensors, reset = inputs(2, 40, 6, 3)
    args = (*(x.requires_grad_() for x in tensors), reset, "c", torch.randperm(80))
    check_op(scan_op, args)


def test_the_public_function_compiles():
    tensors, reset = inputs(2, 40, 6, 3)
    check(
        lambda *x: selective_scan(*x, reset),
        lambda *x: reference(*x, reset)[0],
        tensors,
        compiled=True,
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_reset_keeps_everything_out_even_nan(path):
    tensors, _ = inputs(2, 70, 8, 4)
    reset = torch.zeros(2, 70, dtype=torch.bool)
    reset[0, 40], reset[1, 32] = True, True
    expected = scan_op(*tensors, reset, path)[0]
    u = tensors[0] = tensors[0].clone()
    u[0, :40], u[1, :32] = torch.nan, torch.nan
    u.requires_grad_()
    y = scan_op(*tensors, reset, path)[0]
    assert torch.equal(y[0, 40:], expected[0, 40:])
    assert torch.equal(y[1, 32:], expected[1, 32:])
    y[:, 40:].sum().backward()
    assert u.grad[0, :40].abs().max() == 0
    assert u.grad.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_nan_spreads_to_later_steps(path):
    tensors, reset = inputs(1, 50, 3, 2)
    tensors[1][0, 20, 1] = torch.nan
    y = scan_op(*tensors, torch.zeros_like(reset), path)[0]
    assert y[0, 20:, 1].isnan().all()
    assert y[0, :20].isfinite().all()
    assert y[..., [0, 2]].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_extreme_rates(path):
    tensors, reset = inputs(1, 40, 4, 2)
    tensors[1][:, ::3] = 1e6
    tensors[2][0], tensors[2][1] = -1e35, 0
    check(lambda *x: scan_op(*x, reset, path)[0], lambda *x: reference(*x, reset)[0], tensors)


def test_threads_change_nothing():
    tensors, reset = inputs(2, 100, 70, 16)
    tensors = [x.requires_grad_() for x in tensors]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = selective_scan(*tensors, reset)
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("forced", ["", "reference"])
def test_steps_and_the_final_state(monkeypatch, forced):
    monkeypatch.setenv("PLAIT_KERNELS", forced)
    (u, dt, A, B, C, D), reset = inputs(2, 45, 7, 5)
    y_BTI, h_BIS = selective_scan(u, dt, A, B, C, D, reset, return_state=True)
    state = torch.zeros(2, 7, 5)
    for t in range(45):
        state = state.masked_fill(reset[:, t, None, None], 0)
        y, state = selective_scan_step(state, u[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        torch.testing.assert_close(y, y_BTI[:, t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, h_BIS, rtol=1e-5, atol=1e-5)


def test_gradcheck_in_float64():
    tensors, reset = inputs(1, 35, 2, 2, dtype=torch.float64)
    tensors = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, reset), tensors)


def test_half_precision_is_computed_in_float32():
    tensors, reset = inputs(2, 40, 6, 3)
    tensors = [x.bfloat16() for x in tensors]
    y = selective_scan(*tensors, reset)
    assert y.dtype is torch.bfloat16
    expected = reference(*(x.float() for x in tensors), reset)[0]
    torch.testing.assert_close(y, expected.bfloat16(), rtol=2**-7, atol=1e-5)


def test_strided_inputs():
    tensors, reset = inputs(2, 40, 6, 3)
    views = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in tensors]
    assert torch.equal(selective_scan(*views, reset), selective_scan(*tensors, reset))


def test_the_environment_forces_the_definition(monkeypatch):
    tensors, reset = inputs(1, 20, 3, 2)
    monkeypatch.setenv("PLAIT_KERNELS", "reference")
    assert torch.equal(selective_scan(*tensors, reset), reference(*tensors, reset)[0])
    monkeypatch.setenv("PLAIT_KERNELS", "fast")
    with pytest.raises(ValueError, match="PLAIT_KERNELS='fast'"):
        selective_scan(*tensors, reset)


def test_refuses_shapes_that_disagree():
    tensors, reset = inputs(1, 20, 3, 2)
    with pytest.raises(ValueError, match=r"A is \(2, 2\)"):
        selective_scan(*tensors[:2], tensors[2][:2], *tensors[3:], reset)
    with pytest.raises(ValueError, match="reset is"):
        selective_scan(*tensors, reset.float())


@pytest.fixture
def no_compiler(request, tmp_path, monkeypatch):
    """A PATH without a compiler, or with one that fails; gives the reason to be logged."""
    if request.param == "fails":
        compiler = tmp_path / "cc"
        compiler.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 3\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_c.library.cache_clear()
    choose._log_once.cache_clear()
    yield "this compiler is broken" if request.param == "fails" else "no C compiler"
    compile_c.library.cache_clear()
    choose._log_once.cache_clear()


@pytest.mark.parametrize("no_compiler", ["missing", "fails"], indirect=True)
def test_without_a_compiler(no_compiler, caplog):
    tensors, reset = inputs(1, 1024, 8, 2)
    with caplog.at_level("INFO", "plait.kernels"):
        check(lambda *x: selective_scan(*x, reset), lambda *x: reference(*x, reset)[0], tensors)
    assert sum(no_compiler in message for message in caplog.messages) == 1
    assert caplog.messages[-1] == "selective_scan: chunked"
    assert len(caplog.messages) == 2
