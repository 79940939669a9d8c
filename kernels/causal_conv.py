"""A short causal convolution of each channel with itself, in which no tap reaches another document.

Special here: where the document of the position `j` back is another one, the tap reads zero, so a
packed row equals its documents alone. Letters: models/README.md; here `I` is the width and `K` the
number of taps, of which the last is the position's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose


def causal_conv(x_BTI: Tensor, w_IK: Tensor, bias_I: Tensor, document_BT: Tensor) -> Tensor:
    """y[t] = bias + sum over j < K of w[K-1-j] x[t-j], where t-j is in t's document; [B, T, I].

    Padding (any negative document) counts as a document. ValueError where shapes disagree.

    >>> ones = torch.ones(1, 4, 1)
    >>> causal_conv(ones, torch.ones(1, 3), torch.zeros(1), torch.tensor([[0, 0, 1, 1]])).flatten()
    tensor([1., 2., 1., 2.])
    """
    shapes = tuple(w_IK.shape[:1]), tuple(bias_I.shape), tuple(document_BT.shape)
    if w_IK.ndim != 2 or shapes != (x_BTI.shape[2:], x_BTI.shape[2:], x_BTI.shape[:2]):
        raise ValueError(f"x {tuple(x_BTI.shape)}, w, bias and document {shapes} disagree")
    choose("causal_conv", "shifts")
    y_BTI = torch.addcmul(bias_I, x_BTI, w_IK[:, -1])
    for back in range(1, min(w_IK.shape[1], x_BTI.shape[1])):
        other_BT1 = (document_BT[:, back:] != document_BT[:, :-back])[..., None]
        tap_BTI = x_BTI[:, :-back].masked_fill(other_BT1, 0) * w_IK[:, -1 - back]
        y_BTI = y_BTI + F.pad(tap_BTI, (0, 0, back, 0))
    return y_BTI


def causal_conv_step(
    window_BKI: Tensor, x_BI: Tensor, w_IK: Tensor, bias_I: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: (y [B, I], the new window); the window holds the last K inputs, oldest first.

    A new document's window is zeros.
    """
    window_BKI = torch.cat([window_BKI[:, 1:], x_BI[:, None]], 1)
    return torch.einsum("bki,ik->bi", window_BKI, w_IK) + bias_I, window_BKI
