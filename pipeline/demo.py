"""`plait demo`: the whole way on the sample data, as the commands that anyone would type.

Each step is an ordinary plait command, printed before it runs, so the demo is also a tutorial;
a step whose result is there already is not done again.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from plait.pipeline import cli
from plait.pipeline.meters import duration

SAMPLE_DATA = Path(__file__).resolve().parent / "sample_data"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Fit tokenizers, shard the sample data, train two models, generate, inspect; offline."""

    out: str = "demo"
    """Folder for everything that is made."""
    steps: int = 300
    """Training steps of each model."""
    workers: int = 2
    """Processes that tokenize."""


def main(argv: Sequence[str]) -> int:
    """`plait demo`."""
    options = tyro.cli(DemoOptions, args=list(argv), prog="plait demo")
    out, began = Path(options.out), time.monotonic()
    for why, command, made in steps(out, options.steps, options.workers):
        print(f"\n{why}\n$ plait {shlex.join(command)}", flush=True)
        if made is not None and made.exists():
            print(f"  already there: {made}")
            continue
        code = cli.run(command[0], command[1:])
        if code:
            return code
    print(closing(out, time.monotonic() - began))
    return 0


def steps(
    out: Path, train_steps: int, workers: int
) -> Iterator[tuple[str, list[str], Path | None]]:
    """What is done: why, the command, and the file that shows that it is done already."""
    data, tokenizers, stream = SAMPLE_DATA, out / "tokenizers", out / "stream"
    sources = {
        "text": [data / "text", data / "images", data / "speech"],
        "image": [data / "images", data / "interleaved"],
        "speech": [data / "speech"],
        "bytes": [data / "text"],
    }
    for kind, paths in sources.items():
        folder = tokenizers / kind
        command = ["fit", kind, *map(str, paths), "--out", str(folder), *FIT.get(kind, [])]
        yield f"Fit the {kind} tokenizer", command, folder / "config.json"
    using = [word for kind in sources for word in ("--tokenizer", str(tokenizers / kind))]
    command = ["shard", str(data), "--out", str(stream), *using, "--workers", str(workers)]
    yield "Tokenize everything into one stream", command, None
    yield "Check the stream", ["verify", str(stream)], None
    for preset in ("dense", "mot"):
        run = ["--data", str(stream), "--out", str(out / "runs" / preset)]
        brief = ["--rows.batch-size", "4", "--log.every", "25"]
        command = ["train", preset, *run, "--steps", str(train_steps), *brief]
        yield f"Train the {preset} preset", command, None
    samples = ["--out", str(out / "samples"), "--seed", "1"]
    command = ["generate", str(out / "runs" / "mot"), "--prompt", PROMPT, *samples]
    yield "Sample a text, a picture and a sound", command, None
    page = ["inspect", str(stream), "--html", str(out / "inspect.html")]
    yield "Look at the stream", page, None


FIT = {"text": ["--vocab-size", "2048"], "speech": ["--codebooks", "4"]}
"""Smaller than the defaults: the sample data is small, and shorter sounds train faster."""
PROMPT = "a red flower"


def closing(out: Path, seconds: float) -> str:
    """Where everything lies, and what to try next."""
    return f"""
Done in {duration(seconds)}. Everything lies in {out}:
  tokenizers/    text, image, speech and bytes, each with report.json
  stream/        the shards; stock webdataset reads them too
  runs/          dense and mot, with metrics.jsonl and checkpoints
  samples/       text.txt, image.png, speech.wav
  inspect.html   the stream as a page: open it in a browser

Next:
  plait inspect {out}/runs/mot
  plait train mixture_of_mamba --data {out}/stream --out {out}/runs/mixture_of_mamba
  plait shard YOUR_DATA --out data/stream --tokenizer {out}/tokenizers/text ...
The models are tiny and have seen a few minutes of data: expect shapes and syllables, no sense."""
