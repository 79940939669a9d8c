"""Sparse models against dense ones of equal FLOPs a step, by step matching, on one stream.

    python benchmarks/first_result.py --data STREAM --out RUNS --tokens 5e6 --seeds 0 1

Each model is trained once a seed by `plait train` on one thread, `--parallel` of them at a time;
what was finished is not trained again, and what was killed goes on. MoT and MoMa are matched
against the dense transformer, Mixture-of-Mamba against the same model with nothing untied
("dense_mamba"). Writes OUT/RESULTS.md: FLOPs a step, the tables, and the commands that make them;
beside it a picture of each comparison. Exit code 1 if a run fails or FLOPs a step differ by over
2 %. `--rehearse` trains a few steps of each model instead, and says how many hours it would take.
"""

import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import step_matching
import torch
import tyro

from plait.models.decoder import Decoder
from plait.models.flops import flops_per_token
from plait.models.training.run_config import read_config
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import PlaitError

MODELS: dict[str, list[str]] = {
    "dense": ["dense"],
    "mot": ["mot"],
    "moma": ["moma"],
    "dense_mamba": ["mixture_of_mamba", "--model.n-layers", "4", "--model.untie"],
    "mixture_of_mamba": ["mixture_of_mamba", "--model.n-layers", "4"],
}
"""The words of `plait train` for each model: four blocks each."""
BASE = {"mot": "dense", "moma": "dense", "mixture_of_mamba": "dense_mamba"}
"""The dense model that a sparse one is matched against."""
VALIDATIONS, VALIDATION_BATCHES = 40, 20
"""Points of a curve, and batches of each."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and compare the models."""

    data: tuple[str, ...]
    """The stream, or several, mixed as --extra says."""
    out: Path
    """Folder of the runs and of the result."""
    tokens: float = 5e6
    """Positions that each run is trained on, padding included."""
    seeds: tuple[int, ...] = (0, 1)
    models: tuple[str, ...] = tuple(MODELS)
    """Which of dense, mot, moma, dense_mamba, mixture_of_mamba."""
    parallel: int = 1
    """Runs at a time, each on one thread."""
    seq_len: int = 512
    batch_size: int = 8
    """Rows a step."""
    rehearse: int = 0
    """Train so many steps of each model instead, and tell the hours of the whole."""
    extra: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """More words of `plait train`, such as --extra=--optimizer.lr=0.002."""

    @property
    def steps(self) -> int:
        """Of each run."""
        return max(1, round(self.tokens / self.seq_len / self.batch_size))


def main(options: Options) -> int:
    """Train what is missing, then compare."""
    unknown = set(options.models) - set(MODELS)
    if unknown:
        sys.exit(f"first_result: no model {', '.join(unknown)}; there is {', '.join(MODELS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    costs = {model: flops_per_step(options, model) for model in options.models}
    for model, cost in costs.items():
        print(f"{model:<18}{cost / 1e9:>10.3f} GFLOPs a step", flush=True)
    if options.rehearse:
        return rehearse(options)
    jobs = [(model, seed) for seed in options.seeds for model in options.models]
    with ThreadPoolExecutor(options.parallel) as pool:
        codes = list(pool.map(lambda job: train(options, *job), jobs))
    for job, code in zip(jobs, codes, strict=True):
        if code:
            print(f"failed: see {log_file(options, *job)}", file=sys.stderr)
    return 1 if any(codes) else compare(options)


def flops_per_step(options: Options, model: str) -> float:
    """Of full rows of all the tokens there are; the runs' own, by what they saw, come later."""
    streams, counts = [Stream(path) for path in options.data], Counter()
    vocabulary = Vocabulary.merge([stream.tokenizers for stream in streams])
    for stream in streams:
        for shard in stream.shards:
            counts.update(shard.tokens)
    config = read_config(words(options, model, 0))
    with torch.device("meta"):
        per_token = flops_per_token(Decoder(config.model, vocabulary), options.seq_len)
    mean = sum(per_token[name] * n for name, n in counts.items()) / counts.total()
    return mean * options.seq_len * options.batch_size


def words(options: Options, model: str, seed: int) -> list[str]:
    """What `plait train` is told."""
    every = max(1, options.steps // VALIDATIONS)
    return [
        *MODELS[model],
        *("--data", *options.data, "--out", str(folder(options, model, seed))),
        *("--seed", str(seed), "--steps", str(options.steps), "--device", "cpu"),
        *("--rows.seq-len", str(options.seq_len), "--rows.batch-size", str(options.batch_size)),
        *("--validation.every", str(every), "--validation.batches", str(VALIDATION_BATCHES)),
        *("--log.every", str(every)),
        *("--checkpoint.every", str(every * 5), "--checkpoint.keep", "1"),
        *options.extra,
    ]


def folder(options: Options, model: str, seed: int) -> Path:
    """Of a run."""
    return options.out / f"{model}-{seed}"


def log_file(options: Options, model: str, seed: int) -> Path:
    """What a run prints."""
    return options.out / "logs" / f"{model}-{seed}.txt"


def train(options: Options, model: str, seed: int) -> int:
    """Train one run, unless it is finished; the exit code."""
    run = folder(options, model, seed)
    if last_step(run) >= options.steps:
        print(f"{run}: finished already", flush=True)
        return 0
    command = [sys.executable, "-m", "plait.pipeline.cli", "train"]
    began = time.monotonic()
    log_file(options, model, seed).parent.mkdir(exist_ok=True)
    with log_file(options, model, seed).open("a") as log:
        done = subprocess.run(
            [*command, *words(options, model, seed)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    print(f"{run}: {last_step(run)} steps, {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return done.returncode


def last_step(run: Path) -> int:
    """The last step that was logged; 0 for a run that has not begun."""
    return RunFolder.read(run).step if (run / "config.toml").is_file() else 0


def rehearse(options: Options) -> int:
    """Train a few steps of each model; print how long the whole would take, on a thread each."""
    quiet = ("--validation.every=1000000", "--validation.batches=1", "--log.every=4")
    small = replace(
        options,
        out=options.out / "rehearsal",
        tokens=options.rehearse * options.seq_len * options.batch_size,
        extra=(*options.extra, *quiet),
    )
    small.out.mkdir(exist_ok=True)
    steps = options.steps + VALIDATIONS * VALIDATION_BATCHES / 3  # a forward pass is a third
    for model in options.models:
        if train(small, model, 0):
            return 1
        run = step_matching.Run.read(folder(small, model, 0), "")
        hours = steps * run.s_per_step / 3600
        speed = options.seq_len * options.batch_size / run.s_per_step
        print(f"{model:<18}{speed:>8,.0f} positions/s{hours:>8.2f} hours a seed", flush=True)
    return 0


def compare(options: Options) -> int:
    """Match each sparse model against its dense one; write what was found, and how."""
    found = [
        f"# Step matching, {options.tokens:,.0f} tokens a run, seeds {_joined(options.seeds)}\n"
    ]
    code = 0
    for sparse, dense in BASE.items():
        if not {sparse, dense} <= set(options.models):
            continue
        paths = {m: tuple(folder(options, m, s) for s in options.seeds) for m in (dense, sparse)}
        runs = {m: [step_matching.Run.read(path) for path in paths[m]] for m in paths}
        picture = options.out / f"{sparse}.svg"
        svg = step_matching.draw(runs[dense], runs[sparse], step_matching.SMOOTH)
        picture.write_text(svg, encoding="utf-8")
        runs[dense], runs[sparse], _ = step_matching.comparable(runs[dense], runs[sparse])
        unequal = step_matching.warnings(runs[dense], runs[sparse])
        code |= bool(unequal)
        table = step_matching.table(
            step_matching.compare(runs[dense], runs[sparse], step_matching.SMOOTH)
        )
        costs = ", ".join(
            f"{m} {statistics.mean(r.flops_per_step for r in runs[m]):.4g} FLOPs and"
            f" {statistics.median(r.s_per_step for r in runs[m]):.2f} s a step"
            for m in runs
        )
        command = [
            *("python benchmarks/step_matching.py --dense", *map(str, paths[dense])),
            *("--sparse", *map(str, paths[sparse]), "--out", str(picture)),
        ]
        found += [f"## {sparse} against {dense}\n", f"{costs}.\n", table, ""]
        found += [*(f"**{line}**\n" for line in unequal), f"`{' '.join(command)}`\n"]
    found.append("## Commands\n\n```sh")
    for model in options.models:
        found.append(shlex.join(["plait", "train", *words(options, model, options.seeds[0])]))
    found.append("```\n\n" + shlex.join(["python", *sys.argv]))
    text = "\n".join(found) + "\n"
    (options.out / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)
    return code


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except PlaitError as error:
        sys.exit(f"first_result: {error}")
