"""How fast a decoder takes in prompts and samples: each preset, one row and eight.

    python benchmarks/generate.py
    python benchmarks/generate.py --presets mot --batches 8 --dim 512 --layers 8

Columns are tokens per CPU second of one thread, of all rows together: prompts taken in by one pass,
and token by token; then sampling pictures (their ids alone are scored), sampling with the logits of
the whole vocabulary, and a whole pass of everything so far for each token, which is what a decoder
without caches does. Medians of `repeats`. All ways must sample the same ids, or the exit code is 1;
a tenth may differ, as rounding may put a token on the other side of an expert's threshold.
"""

import statistics
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

import plait.models.config
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.plan import prompt_batch
from plait.pipeline.tables import make_console, print_table
from plait.pipeline.vocabulary import BOS, TokenizerInfo, Vocabulary

PRESETS = Path(plait.models.config.__file__).parent / "presets"
SIZES = {"text": 12_288, "image": 2_048, "speech": 2_048}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure prefill and sampling."""

    presets: tuple[str, ...] = ()
    """Names of presets; all when empty."""
    batches: tuple[int, ...] = (1, 8)
    """Rows side by side."""
    prompt: int = 256
    """Tokens of a prompt, text and a picture."""
    sampled: int = 64
    """Tokens sampled for each row."""
    dim: int = 0
    """Width of the decoder; 0 is the preset's."""
    layers: int = 0
    """Blocks of the decoder; 0 is the preset's."""
    repeats: int = 5
    """Runs; the median counts. Whole passes are timed once."""


def main(options: Options) -> int:
    """Print the table."""
    torch.set_num_threads(1)
    console, same, rows = make_console(), True, []
    for name in options.presets or sorted(path.stem for path in PRESETS.glob("*.toml")):
        decoder = make_decoder(name, options)
        for batch_size in options.batches:
            figures, parity = measure(decoder, batch_size, options)
            same &= parity
            best, whole = figures[2], figures[4]
            rows.append([name, str(batch_size), *(f"{x:,.0f}" for x in figures)])
            rows[-1].append(f"{best / whole:.1f}")
    columns = ["preset", "rows", "prefill", "by steps", "sampling", "all ids", "whole passes"]
    print_table(console, [*columns, "times whole passes"], rows)
    return 0 if same else 1


def make_decoder(name: str, options: Options) -> Decoder:
    """A preset with random weights; thresholds of experts as after a training step."""
    table = tomllib.loads((PRESETS / f"{name}.toml").read_text())["model"]
    config = ModelConfig.from_table(table)
    config = replace(config, dim=options.dim or config.dim)
    config = replace(config, n_layers=options.layers or config.n_layers)
    infos = [
        TokenizerInfo(name=name, modality=name, vocab_size=size, fingerprint=name)
        for name, size in SIZES.items()
    ]
    torch.manual_seed(0)
    decoder = Decoder(config, Vocabulary(tuple(infos)))
    torch.nn.init.normal_(decoder.head, std=0.5)
    batch = prompt_batch(prompts(decoder.vocabulary, 4, options.prompt), decoder.vocabulary)
    with torch.no_grad():
        decoder.train()(batch)
    return decoder.eval()


def prompts(vocabulary: Vocabulary, rows: int, length: int) -> list[list[int]]:
    """Text, then a picture, then the marker of the picture to be sampled."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(rows):
        text, image = (
            torch.randint(SIZES[name], (length // 2,), generator=generator) + vocabulary.start(name)
            for name in ("text", "image")
        )
        ids = [BOS, *text.tolist(), *image.tolist()][: length - 1]
        found.append([*ids, vocabulary.specials.index("<image>")])
    return found


def measure(decoder: Decoder, rows: int, options: Options) -> tuple[list[float], bool]:
    """Tokens a second in the order of the columns, and whether all ways sampled the same."""
    given = prompts(decoder.vocabulary, rows, options.prompt)
    start, size = decoder.vocabulary.start("image"), SIZES["image"]
    ids = slice(start, start + size)

    def sampled(score: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
        x_BD, cache = decoder.prefill(given)
        began, found = time.process_time(), []
        for _ in range(options.sampled):
            found.append(score(x_BD).argmax(1) + start)
            x_BD = decoder.advance(found[-1], cache)
        return time.process_time() - began, torch.stack(found, 1)

    prefill = median(lambda: decoder.prefill(given), options.repeats)
    by_steps = median(lambda: by_step(decoder, given), 1)
    scores = (
        lambda x_BD: decoder.logits(x_BD, ids),
        lambda x_BD: decoder.logits(x_BD)[:, ids],
    )
    ways = [[sampled(score) for _ in range(options.repeats)] for score in scores]
    times = [statistics.median(spent for spent, _ in way) for way in ways]
    began = time.process_time()
    wanted_BT = by_whole_passes(decoder, given, ids, options.sampled)
    whole = time.process_time() - began
    # A rounding may put a token on the other side of an expert's threshold.
    least = 0.9 if decoder.config.chooses else 1.0
    same = all((way[0][1] == wanted_BT).float().mean() >= least for way in ways)
    taken, made = rows * options.prompt, rows * options.sampled
    return [
        taken / prefill,
        taken / by_steps,
        *(made / spent for spent in times),
        made / whole,
    ], same


def by_step(decoder: Decoder, given: list[list[int]]) -> None:
    """The prompts token by token."""
    cache = decoder.start(len(given))
    for tokens_B in torch.tensor(given).unbind(1):
        decoder.advance(tokens_B, cache)


@torch.no_grad()
def by_whole_passes(decoder: Decoder, given: list[list[int]], ids: slice, sampled: int) -> Tensor:
    """Sampled ids [B, T] from passes over all tokens so far; the head at the last one alone."""
    before_BT, prompt = torch.tensor(given), len(given[0])
    for _ in range(sampled):
        x_BD, _ = decoder.prefill(before_BT.tolist())
        token_B = decoder.logits(x_BD, ids).argmax(1) + ids.start
        before_BT = torch.cat([before_BT, token_B[:, None]], 1)
    return before_BT[:, prompt:]


def median(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
