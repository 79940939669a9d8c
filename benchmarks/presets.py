"""Train every preset on one stream and set its validation loss beside the unigram entropy.

    python benchmarks/presets.py --data STREAM --out RUNS --steps 300

A model whose loss in some modality is not below that modality's unigram entropy in the stream has
learned nothing but (at best) how often each token comes. Losses are nats a token, validation is
causal for every preset; a marker's loss counts as text. Exit code 1 if a preset fails.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from plait.models.training.run_config import PRESETS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and compare the presets."""

    data: str
    """The stream."""
    out: str
    """Folder of the runs; finished ones are not trained again."""
    steps: int = 300
    """Steps of each preset."""
    presets: tuple[str, ...] = tuple(sorted(p.stem for p in PRESETS.glob("*.toml")))
    """Which presets."""
    extra: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """More options of `plait train`, such as --extra=--rows.seq-len=1024."""


def main(options: Options) -> int:
    """Print the table; 1 if a preset does not beat the unigram entropy somewhere."""
    stream = plait("inspect", options.data, "--json")
    entropy = {m: v["entropy_nats"] for m, v in stream["modalities"].items() if v["tokens"]}
    print(
        row("", "step", *entropy), row("unigram entropy", "", *numbers(entropy.values())), sep="\n"
    )
    failed = False
    for preset in options.presets:
        run = Path(options.out) / preset
        words = ["--data", options.data, "--out", str(run), "--steps", str(options.steps)]
        command = [sys.executable, "-m", "plait.pipeline.cli", "train", preset]
        subprocess.run([*command, *words, *options.extra], check=True, stdout=sys.stderr)
        facts = plait("inspect", str(run), "--json")
        losses = {m: facts["loss"]["validation"].get(m) for m in entropy}
        print(row(preset, facts["step"], *numbers(losses.values())), flush=True)
        failed |= any(loss is None or loss >= entropy[m] for m, loss in losses.items())
    return int(failed)


def plait(*words: str) -> dict:
    """The JSON that a plait command prints."""
    command = [sys.executable, "-m", "plait.pipeline.cli", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def numbers(values) -> list[str]:
    """Numbers with three decimals; a dash for None."""
    return ["-" if value is None else f"{value:.3f}" for value in values]


def row(name: str, *cells: object) -> str:
    """One line of the table."""
    return f"{name:<18}" + "".join(f"{cell!s:>10}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
