"""The cases of kernels.py: each op at one realistic size, the paths beside its definition.

Each case knows what it has to read and to compute at least, which gives its time on an ideal
machine. On a GPU there are 8 times as many rows as on a CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels import (
    attention,
    causal_conv,
    grouped_linear,
    nearest_code,
    patch_pool,
    product_key_lookup,
    product_keys,
    rms_norm,
    rotary,
    scan,
    scan_c,
    step_size,
    value_table,
)

Path = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One op at one size; the first path is the definition."""

    name: str
    size: str
    paths: dict[str, Path]
    inputs: Sequence[Tensor]
    """Floating-point inputs get gradients, unless the op has none."""
    gradients: bool = True
    tolerance: float = 1e-4
    bars: Sequence[tuple[str, str, float, float]] = ()
    """(path, another, how many times faster it is forward, and with backward); 0 is no bar. They
    are for CPUs."""
    bar_threads: int = 1
    """At how many threads the bars hold: where the definition's small operations use but one."""
    flops: float = 0.0
    """Forward; the backward takes twice as many."""
    read: int | None = None
    """Bytes that the forward reads at least; the inputs' where it is None."""


def scale(device: str) -> int:
    """How many times as many rows as on a CPU."""
    return 8 if device.startswith("cuda") else 1


def nearest_codes(device: str) -> Case:
    """Image and speech tokenizers' quantization."""
    N, K, D = 1024 * scale(device), 4096, 64
    x_ND, codebook_KD = torch.randn(N, D, device=device), torch.randn(K, D, device=device)

    def product(x_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        return torch.addmm(codebook_KD.square().sum(1), x_ND, codebook_KD.T, alpha=-2).argmin(1)

    paths = {
        "float64 distances": nearest_code.reference,
        "one float32 product": product,
        "nearest_code": nearest_code.nearest_code,
    }
    return Case(
        "nearest_code",
        f"{N} x {K} x {D}",
        paths,
        (x_ND, codebook_KD),
        gradients=False,
        flops=2.0 * N * K * D,
    )


def documents(device: str) -> Case:
    """Rows of four documents each."""
    B, T, H, K, length = 2 * scale(device), 1024, 8, 64, 256
    document_BT = (torch.arange(T) // length).repeat(B, 1)
    layout = attention.AttentionLayout.of(document_BT).to(device)
    document_BT = document_BT.to(device)
    mask_B1TT = (document_BT[:, :, None] == document_BT[:, None]).tril()[:, None]

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, attn_mask=mask_B1TT).transpose(1, 2)

    paths = {
        "dense mask, softmax": lambda q, k, v: attention.reference(q, k, v, document_BT),
        "dense mask, sdpa": dense,
        "buckets": lambda q, k, v: attention.attention(q, k, v, layout),
    }
    qkv = [torch.randn(B, T, H, K, device=device) for _ in range(3)]
    bars = [("buckets", "dense mask, sdpa", 0, 3)]
    flops = 4.0 * B * T * (length + 1) / 2 * H * K
    size = f"{B} x {T}, {H} heads of {K}, 4 documents"
    return Case("attention", size, paths, qkv, bars=bars, flops=flops)


def segments(device: str) -> tuple[list[int], Tensor]:
    """Rows of three modalities of different sizes, and the modality of each row."""
    counts = [count * scale(device) for count in (1024, 768, 256)]
    return counts, torch.arange(3).repeat_interleave(torch.tensor(counts)).to(device)


def grouped(device: str) -> Case:
    """A feed-forward's first projection for three modalities."""
    counts, modality_N = segments(device)
    N, I, O = sum(counts), 512, 1024

    def masks(x_ND: Tensor, w_MOD: Tensor) -> Tensor:
        y_NO = x_ND.new_zeros(len(x_ND), w_MOD.shape[1])
        for m, w_OD in enumerate(w_MOD):
            y_NO[modality_N == m] = x_ND[modality_N == m] @ w_OD.T
        return y_NO

    paths = {
        "split, linear, cat": lambda x, w: grouped_linear.reference(x, w, counts),
        "boolean masks": masks,
        "products in place": lambda x, w: grouped_linear.grouped_linear(x, w, counts),
        "one weight (the limit)": lambda x, w: grouped_linear.grouped_linear(x, w[:1], (N,)),
    }
    inputs = (torch.randn(N, I, device=device), torch.randn(3, O, I, device=device))
    size = f"{N} x {I} x {O}, 3 modalities"
    return Case("grouped_linear", size, paths, inputs, flops=2.0 * N * I * O)


def norms(device: str) -> Case:
    """A block's norm with a gain for each of three modalities."""
    counts, modality_N = segments(device)
    N, D, eps = sum(counts), 512, 1e-5

    def gather(x_ND: Tensor, w_MD: Tensor) -> Tensor:
        return F.rms_norm(x_ND, (D,), eps=eps) * F.embedding(modality_N, w_MD)

    paths = {
        "split, rms_norm, cat": lambda x, w: rms_norm.reference(x, w, counts, eps),
        "rms_norm, gains of rows": gather,
        "rms_norm by modality": lambda x, w: rms_norm.rms_norm(x, w, counts, eps),
    }
    inputs = (torch.randn(N, D, device=device), torch.rand(3, D, device=device))
    return Case("rms_norm", f"{N} x {D}, 3 modalities", paths, inputs, flops=4.0 * N * D)


def heads(device: str) -> Case:
    """What stands between attention and the product that makes queries, keys and values."""
    counts, _ = segments(device)
    N, H, K, eps = sum(counts), 8, 64, 1e-5
    turn = torch.randn(N, K // 2, device=device), torch.randn(N, K // 2, device=device)

    def path(function: Callable) -> Path:
        return lambda qkv, w: torch.stack(function(qkv, turn, w, counts, eps))

    paths = {"norms, turns": path(rotary.reference), "rotary_heads": path(rotary.rotary_heads)}
    inputs = torch.randn(N, 3, H, K, device=device), torch.rand(2, 3, K, device=device)
    return Case("rotary", f"{N} x 3 x {H} x {K}, 3 modalities", paths, inputs)


def convolution(device: str) -> Case:
    """A Mamba block's convolution."""
    B, T, I, taps = 2 * scale(device), 1024, 1024, 4
    document_BT = (torch.arange(T, device=device) // 300).repeat(B, 1)
    paths = {
        "shifts": lambda x, w, b: causal_conv.reference(x, w, b, document_BT),
        "causal_conv": lambda x, w, b: causal_conv.causal_conv(x, w, b, document_BT),
    }
    inputs = [torch.randn(*shape, device=device) for shape in ((B, T, I), (I, taps), (I,))]
    size, flops = f"{B} x {T} x {I}, {taps} taps", 2.0 * B * T * I * taps
    return Case("causal_conv", size, paths, inputs, flops=flops)


def scans(device: str, T: int = 1024) -> Case:
    """A Mamba block's scan; an update of a state is 6 operations and an exponential."""
    B, I, S = 2 * scale(device), 512, 16
    reset_BT = torch.rand(B, T, device=device) < 0.01
    paths = {
        "loop": lambda *x: scan.reference(*x, reset_BT)[0],
        "chunked": lambda *x: scan.scan_op(*x, reset_BT, "chunked")[0],
    }
    bars = [("chunked", "loop", 0, 2)]
    if device == "cpu" and scan_c.available():
        paths["c"] = lambda *x: scan.scan_op(*x, reset_BT, "c")[0]
        bars.append(("c", "loop", 20, 25))
    elif device != "cpu":
        paths["selective_scan"] = lambda *x: scan.selective_scan(*x, reset_BT)
    rows_BTI, rows_BTS = (B, T, I), (B, T, S)
    dt_BTI = F.softplus(torch.randn(rows_BTI, device=device) - 3)
    A_IS = -torch.arange(1.0, S + 1, device=device).repeat(I, 1)
    u, Bs, Cs = (torch.randn(shape, device=device) for shape in (rows_BTI, rows_BTS, rows_BTS))
    inputs = (u, dt_BTI, A_IS, Bs, Cs, torch.ones(I, device=device))
    return Case(
        "selective_scan",
        f"{B} x {T} x {I}, {S} states",
        paths,
        inputs,
        bars=bars,
        bar_threads=2,
        flops=6.0 * B * T * I * S,
    )


def scans_by_modality(device: str) -> Case:
    """The same of rows sorted by modality, with the step size's bias of each and its softplus."""
    plain = scans(device)
    u, dt, A, B, C, D = plain.inputs
    N = len(u) * u.shape[1]
    run_N = torch.arange(N) // 100 % 3
    counts, sorted_N = run_N.bincount().tolist(), run_N.sort(stable=True).indices
    places = sorted_N.argsort().to(device), sorted_N.to(device)
    modality_N = run_N[sorted_N].to(device)
    reset_BT = torch.rand(u.shape[:2], device=device) < 0.01

    def loop(u, dt, A, B, C, D, bias_MI):
        dt = F.softplus(dt + bias_MI[modality_N].view(dt.shape))
        u, dt, B, C = (x.flatten(0, 1)[places[0]].view(x.shape) for x in (u, dt, B, C))
        y_BTI = scan.reference(u, dt, A, B, C, D, reset_BT)[0]
        return y_BTI.flatten(0, 1)[places[1]].view(y_BTI.shape)

    def fast(u, dt, A, B, C, D, bias_MI):
        dt = step_size.step_size(dt.flatten(0, 1), bias_MI, counts).view(dt.shape)
        return scan.selective_scan(u, dt, A, B, C, D, reset_BT, places)

    bias_MI = torch.randn(3, u.shape[2], device=device) - 3
    inputs = (u, torch.randn_like(dt), A, B, C, D, bias_MI)
    return Case(
        "selective_scan by modality",
        "the same, sorted by modality, bias of each",
        {"loop": loop, "selective_scan": fast},
        inputs,
        bars=[("selective_scan", "loop", 20, 25)],
        bar_threads=2,
        flops=plain.flops,
    )


def slots(device: str) -> Case:
    """A memory layer's lookup; the definition forces a small number of positions."""
    N, H, n, k = 16 * scale(device), 4, 512, 32
    paths = {
        "all sums": lambda a, b: product_keys.reference(a, b, k)[0],
        "topk twice, staircase": lambda a, b: product_keys.staircase(a, b, k)[0],
        "product_key_topk": lambda a, b: product_keys.product_key_topk(a, b, k)[0],
    }
    inputs = [torch.randn(N, H, n, device=device) for _ in range(2)]
    size = f"{N} x {H} heads, {n}^2 slots, {k} picks"
    return Case("product_key_topk", size, paths, inputs)


def lookups(device: str) -> Case:
    """A memory layer's look-up, from its queries on."""
    N, H, n, d, k = 512 * scale(device), 4, 1024, 64, 32
    paths = {
        "products, topk": lambda q, w: product_key_lookup.products(q, w, k)[0],
        "product_key_lookup": lambda q, w: product_key_lookup.product_key_lookup(q, w, k)[0],
    }
    inputs = [torch.randn(*shape, device=device) for shape in ((N, H, 2, d), (H, 2, n, d))]
    size = f"{N} x {H} heads, {n}^2 slots, {k} picks"
    return Case("product_key_lookup", size, paths, inputs, flops=4.0 * N * H * n * d)


def bags(device: str) -> Case:
    """A memory layer's reading of its table."""
    N, R, D, J = 1024 * scale(device), 2**16, 256, 128
    index_NJ = torch.randint(R, (N, J), device=device)

    def torch_bag(values_RD: Tensor, weight_NJ: Tensor) -> Tensor:
        return F.embedding_bag(index_NJ, values_RD, per_sample_weights=weight_NJ, mode="sum")

    paths = {
        "gather and sum": lambda v, w: value_table.reference(v, index_NJ, w),
        "embedding_bag": torch_bag,
        "weighted_bag": lambda v, w: value_table.weighted_bag(v, index_NJ, w),
    }
    inputs = (torch.randn(R, D, device=device), torch.rand(N, J, device=device))
    size, flops = f"{R} x {D}, {N} x {J} rows read", 2.0 * N * J * D
    return Case("weighted_bag", size, paths, inputs, flops=flops, read=4 * N * J * D)


def pools(device: str) -> Case:
    """What a model of byte patches reads of its bytes: the maximum of each patch of 1 to 8."""
    N, D = 8192 * scale(device), 256
    length_P = torch.randint(1, 9, (N,)).cumsum(0)
    first_P1 = F.pad(length_P[length_P < N], (1, 1))
    first_P1[-1] = N
    first_P1 = first_P1.to(device)
    length_P = first_P1.diff()

    def segment(x_ND: Tensor) -> Tensor:
        return torch.segment_reduce(x_ND, "max", lengths=length_P, unsafe=True)

    paths = {
        "scatter_reduce": lambda x: patch_pool.reference(x, first_P1, "max"),
        "segment_reduce": segment,
        "patch_pool": lambda x: patch_pool.patch_pool(x, first_P1, "max"),
    }
    inputs = [torch.randn(N, D, device=device)]
    return Case("patch_pool", f"{N} x {D}, {len(length_P)} patches", paths, inputs)


CASES = (
    nearest_codes,
    documents,
    grouped,
    norms,
    heads,
    convolution,
    scans,
    scans_by_modality,
    slots,
    lookups,
    bags,
    pools,
)
