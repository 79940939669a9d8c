"""`plait generate RUN --prompt ...`: text, pictures and sound from a trained run.

A prompt is text in which `<image:PATH>` and `<speech:PATH>` stand for files. What is sampled
follows a grammar of modalities, not the model's whim: after a modality's begin marker only that
tokenizer's ids may come, an image is exactly its grid, a codec's frame is whole, then comes the
end marker. So whatever is sampled can be decoded.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import tyro
from torch import Tensor

from plait.models.checkpoint import load, newest_checkpoint
from plait.models.decoder import Decoder
from plait.pipeline.vocabulary import BOS, EOS, Vocabulary
from plait.tokenizers.base import Encoded, Tokenizer, Waveform, load_tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.media import read_audio, read_image

FILE = re.compile(r"<(image|speech):([^<>]+)>")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Sample from a run."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder (its newest checkpoint is taken), or one of its checkpoints."""
    prompt: str = ""
    """Text; `<image:PATH>` and `<speech:PATH>` put a file's tokens in its place."""
    out: str = "samples"
    """Folder for text.txt, image.png, speech.wav, bytes.bin and samples.json."""
    modality: tuple[str, ...] = ()
    """What to sample; all that the run knows when empty."""
    count: int = 1
    """Samples of each modality."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is all."""
    max_tokens: int = 200
    """Longest text or run of bytes, in tokens."""
    seconds: float = 3.0
    """Longest sound."""
    seed: int = 0
    """Of the sampling."""


def main(argv: Sequence[str]) -> int:
    """`plait generate`."""
    options = tyro.cli(GenerateOptions, args=list(argv), prog="plait generate")
    run = Path(options.run)
    model = load(find_checkpoint(run))
    tokenizers = load_tokenizers(run, model.vocabulary)
    wanted = options.modality or tuple(dict.fromkeys(t.modality for t in tokenizers.values()))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    context = encode_prompt(options.prompt, tokenizers, model.vocabulary)
    records = []
    for modality in wanted:
        name = _tokenizer_of(modality, tokenizers)
        grammar = Grammar.of(name, tokenizers[name], model.vocabulary, options)
        generator = torch.Generator().manual_seed(options.seed)
        for number, ids in enumerate(sample(model, context, grammar, options, generator)):
            encoded = Encoded(ids=ids, width=tokenizers[name].width)
            path = _write(tokenizers[name], encoded, out, number if options.count > 1 else None)
            records.append({"modality": modality, "file": path.name, "ids": ids.tolist()})
            print(f"{modality:<7} {len(ids):>5} tokens  {path}")
    report = {"run": str(run), "prompt": options.prompt, "samples": records}
    (out / "samples.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
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


def encode_prompt(
    prompt: str, tokenizers: dict[str, Tokenizer], vocabulary: Vocabulary
) -> list[int]:
    """Global ids of a prompt: `<bos>`, then its text and files in order."""
    ids = [BOS]
    for modality, raw in parse_prompt(prompt):
        names = [n for n, t in tokenizers.items() if t.modality == modality]
        if not names and isinstance(raw, str):
            names = [n for n, t in tokenizers.items() if t.modality == "bytes"]
            raw = raw.encode()
        if not names:
            raise ConfigError(f"the prompt has {modality}, for which the run has no tokenizer")
        name = names[0]
        encoded = tokenizers[name].encode_batch([raw])[0]
        span = vocabulary.to_global(name, encoded.ids).tolist()
        begin, end = vocabulary.begin(name), vocabulary.end(name)
        ids += span if begin is None or end is None else [begin, *span, end]
    return ids


def parse_prompt(prompt: str) -> Iterator[tuple[str, object]]:
    """The parts of a prompt: (modality, raw sample) in order."""
    position = 0
    for match in FILE.finditer(prompt):
        if match.start() > position:
            yield "text", prompt[position : match.start()]
        read: Callable[[Path], object] = read_image if match[1] == "image" else read_audio
        yield match[1], read(Path(match[2]))
        position = match.end()
    if position < len(prompt):
        yield "text", prompt[position:]


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Which ids may come where in one sampled span."""

    begin: int | None
    """The marker put before the span; None for text."""
    stop: int
    """The id that ends the span: its end marker, or `<eos>`."""
    start: int
    """First global id of the tokenizer."""
    tokenizer: Tokenizer
    longest: int
    """Most tokens in the span."""

    @classmethod
    def of(
        cls, name: str, tokenizer: Tokenizer, vocabulary: Vocabulary, options: GenerateOptions
    ) -> "Grammar":
        """The grammar of one of the run's tokenizers."""
        rate = tokenizer.tokens_per_s
        longest = options.max_tokens if rate is None else round(options.seconds * rate)
        longest = max(longest // tokenizer.width, 1) * tokenizer.width
        end = vocabulary.end(name)
        return cls(
            begin=vocabulary.begin(name),
            stop=EOS if end is None else end,
            start=vocabulary.start(name),
            tokenizer=tokenizer,
            longest=tokenizer.span_length or longest,
        )

    def allowed(self, position: int) -> list[range]:
        """Ranges of global ids that may stand at a position of the span."""
        local = self.tokenizer.allowed(position)
        ids = range(self.start + local.start, self.start + local.stop)
        fixed = self.tokenizer.span_length is not None
        may_stop = position > 0 and position % self.tokenizer.width == 0 and not fixed
        return [ids, range(self.stop, self.stop + 1)] if may_stop else [ids]


@torch.no_grad()
def sample(
    model: Decoder,
    context: list[int],
    grammar: Grammar,
    options: GenerateOptions,
    generator: torch.Generator,
) -> list[np.ndarray]:
    """Sample `options.count` spans after the context; local ids, each int64 [n].

    The prompt is read token by token into the model's caches; each row then stops by itself.
    """
    model.eval()
    cache = model.start(options.count)
    logits_BV = torch.empty(0)
    for token in context if grammar.begin is None else [*context, grammar.begin]:
        logits_BV = model.step(torch.full((options.count,), token), cache)
    rows: list[list[int]] = [[] for _ in range(options.count)]
    live = torch.ones(options.count, dtype=torch.bool)
    for position in range(grammar.longest):
        tokens_B = _pick(logits_BV, grammar.allowed(position), options, generator)
        live &= tokens_B != grammar.stop
        for row, token, is_live in zip(rows, tokens_B.tolist(), live.tolist(), strict=True):
            if is_live:
                row.append(token - grammar.start)
        if not live.any() or position + 1 == grammar.longest:
            break
        logits_BV = model.step(tokens_B, cache)
    width = grammar.tokenizer.width
    return [np.array(row[: len(row) // width * width], np.int64) for row in rows]


def _pick(
    logits_BV: Tensor, allowed: list[range], options: GenerateOptions, generator: torch.Generator
) -> Tensor:
    """One token a row among the allowed ids, int64 [B]."""
    ids_A = torch.cat([torch.arange(r.start, r.stop) for r in allowed])
    logits_BA = logits_BV.float().cpu()[:, ids_A]
    if options.temperature == 0:
        return ids_A[logits_BA.argmax(-1)]
    logits_BA = logits_BA / options.temperature
    if 0 < options.top_k < len(ids_A):
        least_B1 = logits_BA.topk(options.top_k).values[:, -1:]
        logits_BA = logits_BA.masked_fill(logits_BA < least_B1, -torch.inf)
    choice_B1 = torch.multinomial(logits_BA.softmax(-1), 1, generator=generator)
    return ids_A[choice_B1[:, 0]]


def _tokenizer_of(modality: str, tokenizers: dict[str, Tokenizer]) -> str:
    for name, tokenizer in tokenizers.items():
        if modality in (name, tokenizer.modality):
            return name
    known = ", ".join(dict.fromkeys(t.modality for t in tokenizers.values()))
    raise ConfigError(f"--modality {modality}: the run knows {known}")


def _write(tokenizer: Tokenizer, encoded: Encoded, out: Path, number: int | None) -> Path:
    suffixes = {"text": "txt", "image": "png", "speech": "wav", "bytes": "bin"}
    tail = "" if number is None else f"-{number}"
    path = out / f"{tokenizer.modality}{tail}.{suffixes.get(tokenizer.modality, 'bin')}"
    raw = tokenizer.decode(encoded)
    if isinstance(raw, str):
        path.write_bytes(raw.encode())
    elif isinstance(raw, bytes):
        path.write_bytes(raw)
    elif isinstance(raw, Waveform):
        soundfile.write(path, np.clip(raw.samples, -1, 1), raw.sample_rate_hz, subtype="PCM_16")
    else:
        raw.save(path)
    return path
