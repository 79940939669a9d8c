"""What a speech tokenizer's report holds: likeness of the decoded sounds, use of codes, rates."""

from collections.abc import Iterable

import numpy as np
import torch

from plait.tokenizers.base import Tokenizer, Waveform
from plait.tokenizers.quantize import CodeUse
from plait.tokenizers.sound import prepare
from plait.tokenizers.speech_metrics import mel_distance_db, multi_mel_distance_db, si_sdr_db, stoi


def measure(
    tokenizer: Tokenizer,
    held_out: Iterable[Waveform],
    rate_hz: int,
    *,
    codebooks: int | None = None,
) -> dict[str, float]:
    """Means over sounds, sound by sound; `rate_hz` is the tokenizer's.

    `codebooks` is that of a codec, whose ids are level * K + code: code use is then given level by
    level (from 0), and SI-SDR and STOI too, which need the phase that units do not keep. SI-SDR is
    over sounds that are not silent, STOI over those of which it can be computed (`stoi_sounds`) and
    left out where pystoi is not installed.
    """
    ids, likeness, seconds = [], [], 0.0
    for sample in held_out:
        original = prepare(sample, rate_hz)
        encoded = tokenizer.encode_batch([sample])[0]
        sound = tokenizer.decode(encoded)
        assert isinstance(sound, Waveform)
        decoded = torch.from_numpy(sound.samples)
        ids.append(encoded.ids)
        seconds += len(original) / rate_hz
        row = {
            "mel_distance_db": mel_distance_db(decoded, original, rate_hz),
            "multi_mel_db": multi_mel_distance_db(decoded, original, rate_hz),
        }
        if codebooks:
            row["si_sdr_db"] = si_sdr_db(decoded, original)
            row["stoi"] = stoi(decoded, original, rate_hz)
        likeness.append(row)
    all_ids = torch.from_numpy(np.concatenate([*ids, []]).astype(np.int64))
    return {
        "sounds": len(ids),
        "seconds": seconds,
        **_rates(all_ids, seconds, tokenizer.vocab_size // (codebooks or 1)),
        **_means(likeness),
        **_code_use(all_ids, tokenizer.vocab_size, codebooks),
    }


def _rates(ids: torch.Tensor, seconds: float, codes: int) -> dict[str, float]:
    rate, bits = len(ids) / max(seconds, 1e-9), float(np.log2(codes))
    return {
        "tokens": len(ids),
        "tokens_per_s": rate,
        "bits_per_token": bits,
        "bits_per_s": rate * bits,
    }


def _means(likeness: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the sounds of which it is a number."""
    means: dict[str, float] = {}
    for name in likeness[0] if likeness else ():
        values = [row[name] for row in likeness if np.isfinite(row[name])]
        if values:
            means[name] = float(np.mean(values))
        if values and name == "stoi":
            means["stoi_sounds"] = len(values)
    return means


def _code_use(ids: torch.Tensor, vocab_size: int, codebooks: int | None) -> dict[str, float]:
    use = CodeUse.of(ids, vocab_size)
    report = {
        "codes_used": use.codes_used,
        "codes_dead": use.codes_dead,
        "perplexity": use.perplexity,
    }
    size = vocab_size // (codebooks or 1)
    for level in range(codebooks or 0):
        of_level = CodeUse.of(ids[ids // size == level] % size, size)
        report[f"codes_used_level_{level}"] = of_level.codes_used
        report[f"perplexity_level_{level}"] = of_level.perplexity
    return report
