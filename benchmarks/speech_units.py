"""How well speech units agree with phones: purity and phone-normalized mutual information.

    pip install pocketsphinx
    python benchmarks/speech_units.py FOLDER... --units 100

English sounds with transcripts (`text` in metadata.jsonl) are aligned with pocketsphinx's phones.
Units are fitted on one half of the utterances and measured on the other, as in HuBERT
(arXiv:2106.07447, section IV-C): PNMI is I(phone; unit) / H(phone). Finite data raise it, so the
same units in random order are shown beside it ("by chance"). Exit code 1 if no row reaches the bar.
"""

import re
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pocketsphinx
import torch
import tyro
from speech_tokenizer import Sound, read_sounds, share

from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.sound import prepare
from plait.tokenizers.speech import FitOptions, Units, fit

RATE_HZ = 16_000
PHONE_RATE_HZ = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure units against phones."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with metadata.jsonl, sounds and transcripts."""
    units: tuple[int, ...] = (100, 500)
    """How many units, a row each."""
    rates_hz: tuple[int, ...] = (25, 50)
    """Frames a second, a row each."""
    model: str = ""
    """Folder of a speech model; without, units are of cepstra."""
    layer: int = 9
    """Its layer."""
    bar: float = 0.4
    """PNMI that the best row of the fewest units should reach."""


def main(options: Options) -> int:
    """Print the table."""
    torch.set_num_threads(1)
    sounds = [s for folder in options.folders for s in read_sounds(folder) if s.text]
    phones = align(sounds)
    known = [s for s in sounds if share(s.key) < 0.5]
    others = [s for s in sounds if share(s.key) >= 0.5 and s.key in phones]
    rows, best = [], 0.0
    for rate_hz, units in product(options.rates_hz, options.units):
        began = time.process_time()
        tokenizer = fit(
            [s.waveform for s in known],
            FitOptions(
                method="units",
                units=units,
                unit_rate_hz=25 if rate_hz == 25 else 50,
                model=options.model,
                layer=options.layer,
            ),
        )
        seconds = time.process_time() - began
        assert isinstance(tokenizer, Units)
        pairs, tokens = _pairs(tokenizer, others, phones)
        phone_purity, pnmi = agreement(pairs)
        chance = agreement(np.stack([pairs[0], np.random.default_rng(0).permutation(pairs[1])]))
        best = max(best, pnmi) if units == min(options.units) else best
        rows.append(
            [
                f"{units} at {rate_hz} Hz",
                f"{pairs.shape[1]:,}",
                f"{pnmi:.3f}",
                f"{phone_purity:.3f}",
                f"{chance[1]:.3f}",
                f"{tokens * rate_hz / pairs.shape[1]:.1f}",
                f"{len(np.unique(pairs[1]))}",
                f"{seconds:.0f}",
            ]
        )
    speakers = len({s.speaker for s in others})
    console = make_console()
    console.print(f"{len(others)} utterances of {speakers} speakers measured, {len(known)} fitted")
    head = [
        "units",
        "frames",
        "PNMI",
        "phone purity",
        "PNMI by chance",
        "tokens/s",
        "used",
        "CPU s",
    ]
    print_table(console, head, rows)
    return 0 if best >= options.bar else 1


def align(sounds: list[Sound]) -> dict[str, list[str]]:
    """The phone of each 10 ms of each sound that pocketsphinx can align, by key."""
    decoder = pocketsphinx.Decoder(samprate=RATE_HZ, bestpath=False, loglevel="FATAL")
    phones = {}
    for sound in sounds:
        words = re.findall(r"[a-z']+", sound.text.lower())
        if not words or any(decoder.lookup_word(word) is None for word in words):
            continue
        samples = prepare(sound.waveform, RATE_HZ).clamp(-1, 1).numpy()
        pcm = (samples * 32767).astype("<i2").tobytes()
        try:
            decoder.set_align_text(" ".join(words))
            _listen(decoder, pcm)
            if decoder.hyp() is None:
                continue
            decoder.set_alignment()
            _listen(decoder, pcm)
            alignment = decoder.get_alignment()
        except RuntimeError:  # the words do not fit the sound
            continue
        if alignment is not None:
            phones[sound.key] = [
                p.name for word in alignment for p in word for _ in range(p.duration)
            ]
    return phones


def _listen(decoder: pocketsphinx.Decoder, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def _pairs(
    tokenizer: Units, sounds: list[Sound], phones: dict[str, list[str]]
) -> tuple[np.ndarray, int]:
    """The phone's and the unit's number of each frame, [2, N], and the tokens after merging."""
    numbers = {p: i for i, p in enumerate(sorted({p for s in sounds for p in phones[s.key]}))}
    pairs, tokens = [], 0
    for sound in sounds:
        units = tokenizer.frames(prepare(sound.waveform, tokenizer.sample_rate_hz)).numpy()
        tokens += 1 + int((np.diff(units) != 0).sum())
        places = (np.arange(len(units)) + 0.5) * PHONE_RATE_HZ / tokenizer.unit_rate_hz
        heard = phones[sound.key]
        for place, unit in zip(places.astype(int), units, strict=True):
            if place < len(heard):
                pairs.append((numbers[heard[place]], unit))
    return np.array(pairs).T, tokens


def agreement(pairs: np.ndarray) -> tuple[float, float]:
    """Phone purity and PNMI of [2, N] numbers of phones and units."""
    joint = np.zeros(pairs.max(1) + 1)
    np.add.at(joint, tuple(pairs), 1)
    joint /= joint.sum()
    phone, unit = joint.sum(1), joint.sum(0)
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / np.outer(phone, unit)[seen])).sum()
    entropy = -(phone[phone > 0] * np.log(phone[phone > 0])).sum()
    return float(joint.max(0).sum()), float(information / entropy)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
