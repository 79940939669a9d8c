"""How good an image tokenizer is on pictures it has not seen."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import SampleError
from plait.tokenizers.image_grid import GridTokenizer
from plait.tokenizers.image_latents import KLAutoencoder
from plait.tokenizers.image_metrics import frechet, psnr, ssim, texture_features
from plait.tokenizers.quantize import CodeUse


def evaluate(tokenizer: GridTokenizer, held_out: Iterable[Image.Image]) -> dict[str, float]:
    """Quality of decoded pictures (mean over pictures), and use of the codes, and bits.

    Of continuous latents, instead of codes: the KL term, and their mean and deviation over all
    channels. `frechet_texture` is the Frechet distance of `image_metrics.texture_features`,
    hand-made statistics of colour and edges. It is not the rFID of papers, whose features are a
    network's.
    """
    psnr_db, similarity, encoded, pixels = [], [], [], 0
    features: tuple[list[Tensor], list[Tensor]] = [], []
    for image in held_out:
        original, decoded, codes = _both(tokenizer, image)
        psnr_db.append(psnr(decoded, original).item())
        similarity.append(ssim(decoded, original).item())
        for kept, picture in zip(features, (original, decoded), strict=True):
            kept.append(texture_features(picture))
        encoded.append(codes)
        pixels += original.shape[2] * original.shape[3]
    if not encoded:
        raise SampleError("no pictures to evaluate an image tokenizer on")
    return {
        "images": len(encoded),
        "psnr": sum(psnr_db) / len(encoded),
        "ssim": sum(similarity) / len(encoded),
        "frechet_texture": frechet(torch.cat(features[0]), torch.cat(features[1])),
        "tokens_per_image": sum(len(e.ids) for e in encoded) / len(encoded),
        **(
            _of_latents(tokenizer, encoded)
            if isinstance(tokenizer, KLAutoencoder)
            else _of_codes(tokenizer, encoded, pixels)
        ),
    }


def _of_codes(tokenizer: GridTokenizer, encoded: Sequence[Encoded], pixels: int) -> dict:
    all_ids = torch.from_numpy(np.concatenate([e.ids.astype(np.int64) for e in encoded]))
    use = CodeUse.of(all_ids, tokenizer.vocab_size)
    bits_per_token = math.log2(tokenizer.codes)
    bits = len(all_ids) * bits_per_token
    return {
        "codes_used": use.codes_used,
        "codes_dead": use.codes_dead,
        "perplexity": use.perplexity,
        "bits_per_token": bits_per_token,
        "bits_per_image": bits / len(encoded),
        "bits_per_pixel": bits / pixels,
    }


def _of_latents(tokenizer: KLAutoencoder, encoded: Sequence[Encoded]) -> dict[str, float]:
    latents_nD = torch.from_numpy(
        np.concatenate([e.latents for e in encoded if e.latents is not None])
    ).float()
    return {
        "numbers_per_token": tokenizer.channels,
        "kl_nats": tokenizer.kl_nats(latents_nD),
        "latents_mean": latents_nD.mean().item(),
        "latents_deviation": latents_nD.std().item(),
    }


def _both(tokenizer: GridTokenizer, image: Image.Image) -> tuple[Tensor, Tensor, Encoded]:
    """Original and decoded, uint8 [1, 3, H, W], and what lay between."""
    (encoded,) = tokenizer.encode_batch([image])
    decoded = pil_to_tensor(tokenizer.decode(encoded))
    return tokenizer.to_pixels(image)[None], decoded[None], encoded
