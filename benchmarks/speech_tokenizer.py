"""Fit the codecs on real speech, 50 Hz x 8 x 1024, and measure them on sound they have not seen.

    python benchmarks/speech_tokenizer.py FOLDER... --mixed utterances speakers
    python benchmarks/speech_tokenizer.py FOLDER --conv-steps 0 500
    python benchmarks/speech_tokenizer.py FOLDER --shifts 1 --max-minutes 3 --conv-steps 60

A folder holds metadata.jsonl, with `file_name` and `speaker` in each row. Each folder of one
speaker is a row of the table, split by utterance; --mixed adds rows over all folders together,
split by utterance, or by speaker: none of the held-out speakers was fitted on. --conv-steps adds
rows for the trained codec (speech_codec.py) after so many steps; 0 is its start. Choices hang on a
hash of names, so every run and every option sees the same ones. STOI needs plait[metrics]. Exit
code 1 if the first row is under the bars.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.base import Waveform
from plait.tokenizers.media import read_audio
from plait.tokenizers.speech import MDCT, FitOptions, evaluate, fit

METRICS = ("si_sdr_db", "stoi", "stoi_sounds", "mel_distance_db", "multi_mel_db", "bits_per_s")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the speech codec."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with metadata.jsonl and sounds."""
    single: bool = True
    """Each folder of one speaker alone."""
    mixed: tuple[Literal["utterances", "speakers"], ...] = ()
    """Also all folders together, with new utterances, or new speakers, held out."""
    held_out: float = 0.1
    """Share of the utterances, or of the speakers, that is kept for the evaluation."""
    most_held_out: int = 100
    """Most sounds to evaluate on."""
    conv_steps: tuple[int, ...] = ()
    """Also the codec of method `conv`, trained for so many steps, beside each row of MDCT."""
    spectral: float = FitOptions.spectral
    """Its option of that name."""
    shifts: int = 4
    """The codecs' option of that name."""
    max_minutes: float = 30.0
    """Most sound to fit on."""
    si_sdr_bar: float = 10.0
    """dB that the first row should reach."""
    stoi_bar: float = 0.8
    """STOI that the first row should reach."""
    seed: int = 0
    """Seed of the fit."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One utterance and what is known of it."""

    key: str
    speaker: str
    text: str
    waveform: Waveform


def read_sounds(folder: Path) -> list[Sound]:
    """The sounds that a folder's metadata.jsonl names."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    sounds = []
    for row in map(json.loads, lines):
        waveform = read_audio(folder / row["file_name"])
        text = row.get("text", "") if row.get("lang") == "en" else ""
        key = f"{folder.name}/{row['file_name']}"
        sounds.append(Sound(key=key, speaker=row["speaker"], text=text, waveform=waveform))
    return sounds


def share(name: str) -> float:
    """A number 0..1 of a name, always the same."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8


def main(options: Options) -> int:
    """Print the tables."""
    torch.set_num_threads(1)
    folders = [read_sounds(folder) for folder in options.folders]
    jobs: list[tuple[str, list[Sound], Callable[[Sound], str]]] = []
    for folder, sounds in zip(options.folders, folders, strict=True):
        if options.single and len({sound.speaker for sound in sounds}) == 1:
            jobs.append((folder.name, sounds, lambda sound: sound.key))
    together = [sound for sounds in folders for sound in sounds]
    for new in options.mixed:
        by = (lambda s: s.key) if new == "utterances" else (lambda s: s.speaker)
        jobs.append((f"mixed, new {new}", together, by))
    reports = []
    for name, sounds, by in jobs:
        common = FitOptions(shifts=options.shifts, max_minutes=options.max_minutes, threads=1)
        fits = {name: common}
        for steps in options.conv_steps:
            fits[f"{name}, conv {steps}"] = replace(
                common, method="conv", steps=steps, spectral=options.spectral
            )
        for row, of_fit in fits.items():
            reports.append((row, *_measure(sounds, by, of_fit, options)))
            print(f"{row}: {reports[-1][2]['si_sdr_db']:.2f} dB", file=sys.stderr, flush=True)
    _print(reports)
    first = reports[0][2]
    reached = first["si_sdr_db"] >= options.si_sdr_bar and first["stoi"] >= options.stoi_bar
    print(
        f"{reports[0][0]}: {'at' if reached else 'UNDER'} the bars of {options.si_sdr_bar:g} dB "
        f"and STOI {options.stoi_bar:g}"
    )
    return 0 if reached else 1


def _measure(
    sounds: Sequence[Sound], by: Callable[[Sound], str], of_fit: FitOptions, options: Options
) -> tuple[list[str], dict[str, float]]:
    """What was fitted on and what it cost, and the report."""
    held_out = sorted(
        (s for s in sounds if share(by(s)) < options.held_out), key=lambda s: share(s.key)
    )
    known = [s for s in sounds if share(by(s)) >= options.held_out]
    began = time.process_time()
    tokenizer = fit([s.waveform for s in known], of_fit, seed=options.seed)
    seconds = time.process_time() - began
    assert isinstance(tokenizer, MDCT)
    held_out = held_out[: options.most_held_out]
    minutes = sum(len(s.waveform.samples) / s.waveform.sample_rate_hz for s in known) / 60
    minutes = min(minutes, options.max_minutes)
    about = [
        f"{len({s.speaker for s in known})}/{len({s.speaker for s in held_out})}",
        f"{minutes:.1f}",
        f"{len(held_out)}",
        f"{seconds:.0f}",
    ]
    report = evaluate(tokenizer, [s.waveform for s in held_out])
    report.setdefault("stoi", float("nan"))
    report.setdefault("stoi_sounds", 0)
    return about, report


def _print(reports: list[tuple[str, list[str], dict[str, float]]]) -> None:
    console = make_console()
    head = ["sounds", "speakers fit/held", "min fit", "held out", "CPU s", *METRICS, "codes used"]
    print_table(
        console,
        head,
        [
            [
                name,
                *about,
                *(f"{report[m]:.2f}" if m != "stoi" else f"{report[m]:.3f}" for m in METRICS),
                f"{report['codes_used'] / (report['codes_used'] + report['codes_dead']):.0%}",
            ]
            for name, about, report in reports
        ],
    )
    levels = [name for name in reports[0][2] if name.startswith("codes_used_level_")]
    print_table(
        console,
        ["codes used of 1024, by level", *(name.rpartition("_")[2] for name in levels)],
        [[name, *(f"{report[x]:.0f}" for x in levels)] for name, _, report in reports],
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
