"""`plait generate RUN --prompt ...`: text, pictures and sound from a trained run.

Prompts are in prompts.py, what may be sampled in grammar.py, the sampling itself in sampling.py,
and the files that come of it in samples.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from plait.models.checkpoint import load, newest_checkpoint
from plait.models.device import find_device
from plait.models.generation.grammar import Span, Walk
from plait.models.generation.prompts import encode_prompt, read_prompts
from plait.models.generation.samples import write_page, write_part
from plait.models.generation.sampling import GUIDED, Row, Sampling, Speed, sample
from plait.pipeline.vocabulary import BOS, Vocabulary
from plait.tokenizers.base import Tokenizer, load_tokenizer
from plait.tokenizers.errors import ConfigError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Sample from a run."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder (its newest checkpoint is taken), or one of its checkpoints."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text; `<image:PATH>` and `<speech:PATH>` put a file's tokens in its place. May be repeated;
    all prompts are sampled side by side."""
    prompts: str | None = None
    """File of JSON lines, each a prompt as a string or as {"prompt": "..."}."""
    out: str = "samples"
    """Folder for text.txt, image.png, speech.wav, bytes.bin and samples.json; with several prompts
    or samples their numbers follow the name, text-PROMPT-SAMPLE.txt."""
    modality: tuple[str, ...] = ()
    """What to sample; all that the run knows when empty. `auto` lets the model choose what comes
    after what: text and spans of other modalities, until it ends."""
    count: int = 1
    """Samples of each prompt and modality."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    max_tokens: int = 200
    """Longest text or run of bytes, in tokens; with `auto`, no part begins after so many."""
    seconds: float = 3.0
    """Longest sound."""
    batch: int = 32
    """Samples side by side; what is sampled does not depend on it."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, ...; in fp32 everywhere."""

    def check(self) -> None:
        """ConfigError for a value out of range."""
        for name in ("count", "max_tokens", "batch"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: it should be 1 or more")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"--seconds {self.seconds}: it should be above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A sample to be made, and what it is."""

    prompt: int
    modality: str
    number: int
    row: Row


def main(argv: Sequence[str]) -> int:
    """`plait generate`."""
    options = tyro.cli(GenerateOptions, args=list(argv), prog="plait generate")
    options.check()
    run, out = Path(options.run), Path(options.out)
    model = load(find_checkpoint(run), find_device(options.device))
    tokenizers = load_tokenizers(run, model.vocabulary)
    prompts = [*options.prompt, *(read_prompts(Path(options.prompts)) if options.prompts else [])]
    prompts = prompts or [""]
    jobs = _jobs(prompts, tokenizers, model.vocabulary, options)
    alike = sorted(jobs, key=lambda job: job.modality)  # steps of one modality are faster
    speed = sample(model, [job.row for job in alike], options.sampling, options.batch)
    out.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "prompt": job.prompt,
            "sample": job.number,
            "modality": job.modality,
            **_write(job, out, _stem(job, len(prompts), options.count), tokenizers, prompts),
        }
        for job in jobs
    ]
    report = {"run": str(run), "prompts": prompts, "samples": records, "speed": _figures(speed)}
    (out / "samples.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(
        f"prompts {speed.prefill_tokens:,} tokens, {speed.prefill_tokens_per_s:,.0f} tokens/s;"
        f" samples {speed.sampled_tokens:,} tokens, {speed.sampled_tokens_per_s:,.0f} tokens/s"
    )
    return 0


def find_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run, or the checkpoint itself."""
    if (run / "model.safetensors").is_file():
        return run
    newest = newest_checkpoint(run)
    if newest is None:
        raise ConfigError(f"{run}: no checkpoint here; train one with `plait train`")
    return newest


def load_tokenizers(run: Path, vocabulary: Vocabulary) -> dict[str, Tokenizer]:
    """The run's tokenizers by name, each checked against the vocabulary's fingerprint."""
    folder = run / "tokenizers"
    if not folder.is_dir():  # a checkpoint: RUN/checkpoints/step-N
        folder = run.parent.parent / "tokenizers"
    found = {}
    for info in vocabulary.tokenizers:
        tokenizer = load_tokenizer(folder / info.name)
        if tokenizer.fingerprint != info.fingerprint:
            raise ConfigError(
                f"{folder / info.name}: not the tokenizer that the model was trained with"
                f" (fingerprint {tokenizer.fingerprint}, the model has {info.fingerprint})"
            )
        found[info.name] = tokenizer
    return found


def _jobs(
    prompts: Sequence[str],
    tokenizers: dict[str, Tokenizer],
    vocabulary: Vocabulary,
    options: GenerateOptions,
) -> list[_Job]:
    """All samples: for each prompt and modality, `count` of them."""
    limits = {"max_tokens": options.max_tokens, "seconds": options.seconds}
    spans = {name: Span.of(name, t, vocabulary, **limits) for name, t in tokenizers.items()}
    wanted = options.modality or tuple(dict.fromkeys(t.modality for t in tokenizers.values()))
    named = {m: None if m == AUTO else spans[_tokenizer_of(m, tokenizers)] for m in wanted}
    jobs = []
    for p, prompt in enumerate(prompts):
        context = encode_prompt(prompt, tokenizers, vocabulary)
        for modality, span in named.items():
            marker = () if span is None or span.begin is None else (span.begin,)
            ids, unguided = (*context, *marker), (BOS, *marker)
            guided = span is None or span.tokenizer.modality in GUIDED
            guided = guided and options.sampling.guided and ids != unguided
            for number in range(options.count):
                row = Row(
                    prompt=ids,
                    walk=Walk.free(spans, options.max_tokens) if span is None else Walk(span),
                    draws=np.random.default_rng((options.sampling.seed, p, number)),
                    unguided=unguided if guided else None,
                )
                jobs.append(_Job(prompt=p, modality=modality, number=number, row=row))
    return jobs


def _tokenizer_of(modality: str, tokenizers: dict[str, Tokenizer]) -> str:
    for name, tokenizer in tokenizers.items():
        if modality in (name, tokenizer.modality):
            return name
    known = ", ".join(dict.fromkeys(t.modality for t in tokenizers.values()))
    raise ConfigError(f"--modality {modality}: the run knows {known}")


def _stem(job: _Job, prompts: int, count: int) -> str:
    """The name of a sample's file: its modality, and its numbers where there are several."""
    numbers = [job.prompt] * (prompts > 1) + [job.number] * (count > 1)
    return "-".join([job.modality, *map(str, numbers)])


def _write(
    job: _Job, out: Path, stem: str, tokenizers: dict[str, Tokenizer], prompts: Sequence[str]
) -> dict[str, object]:
    """Write a sample's files; returns what the report says of them."""
    several, found, paths = job.modality == AUTO, [], []
    for n, part in enumerate(job.row.walk.parts):
        tokenizer = tokenizers[part.name]
        name = f"{stem}-{n}-{tokenizer.modality}" if several else stem
        paths.append(write_part(part, tokenizer, out / name))
        found.append({"modality": tokenizer.modality, "file": paths[-1].name, "ids": part.ids})
        print(f"{tokenizer.modality:<7} {len(part.ids):>5} tokens  {paths[-1]}")
    if not several:
        return found[0]
    write_page(prompts[job.prompt], paths, out / f"{stem}.html")
    return {"page": f"{stem}.html", "parts": found}


def _figures(speed: Speed) -> dict[str, float]:
    return {
        "prompt_tokens": speed.prefill_tokens,
        "prompt_tokens_per_s": round(speed.prefill_tokens_per_s, 1),
        "sampled_tokens": speed.sampled_tokens,
        "sampled_tokens_per_s": round(speed.sampled_tokens_per_s, 1),
    }
