"""How good an image tokenizer is on pictures it has not seen."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from plait.tokenizers.errors import SampleError
from plait.tokenizers.image_grid import PictureTokenizer
from plait.tokenizers.image_metrics import frechet, psnr, ssim, texture_features
from plait.tokenizers.quantize import CodeUse


def evaluate(tokenizer: PictureTokenizer, held_out: Iterable[Image.Image]) -> dict[str, float]:
    """Quality of decoded pictures (mean over pictures), use of the codes, and bits.

    `frechet_texture` is the Frechet distance of `image_metrics.texture_features`, hand-made
    statistics of colour and edges. It is not the rFID of papers, whose features are a network's.
    """
    psnr_db, similarity, ids, pixels = [], [], [], 0
    features: tuple[list[Tensor], list[Tensor]] = [], []
    for image in held_out:
        original, decoded, codes = _both(tokenizer, image)
        psnr_db.append(psnr(decoded, original).item())
        similarity.append(ssim(decoded, original).item())
        for kept, picture in zip(features, (original, decoded), strict=True):
            kept.append(texture_features(picture))
        ids.append(codes)
        pixels += original.shape[2] * original.shape[3]
    if not ids:
        raise SampleError("no pictures to evaluate an image tokenizer on")
    all_ids = torch.from_numpy(np.concatenate(ids))
    use = CodeUse.of(all_ids, tokenizer.vocab_size)
    bits_per_token = math.log2(tokenizer.codes)
    bits = len(all_ids) * bits_per_token
    return {
        "images": len(ids),
        "psnr": sum(psnr_db) / len(ids),
        "ssim": sum(similarity) / len(ids),
        "frechet_texture": frechet(torch.cat(features[0]), torch.cat(features[1])),
        "codes_used": use.codes_used,
        "codes_dead": use.codes_dead,
        "perplexity": use.perplexity,
        "tokens_per_image": len(all_ids) / len(ids),
        "bits_per_token": bits_per_token,
        "bits_per_image": bits / len(ids),
        "bits_per_pixel": bits / pixels,
    }


def _both(tokenizer: PictureTokenizer, image: Image.Image) -> tuple[Tensor, Tensor, np.ndarray]:
    """Original and decoded, uint8 [1, 3, H, W], and the ids, int64."""
    (encoded,) = tokenizer.encode_batch([image])
    decoded = pil_to_tensor(tokenizer.decode(encoded))
    return tokenizer.to_pixels(image)[None], decoded[None], encoded.ids.astype(np.int64)
