"""`plait eval RUN --data ...`: how well a trained run predicts a stream, a source or answers.

Loss by modality and bits per byte are in perplexity.py, captions and pictures in pairs.py, answers
in recall.py. All are causal for every model, as generation is, whatever chose in training; and none
depends on how many rows are evaluated side by side, but for rounding.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from plait.models.checkpoint import load
from plait.models.decoder import Decoder
from plait.models.evaluation.evaluate_report import StreamResult, is_finite, print_results, to_facts
from plait.models.evaluation.pairs import evaluate_pairs, find_pairs
from plait.models.evaluation.perplexity import Documents, evaluate
from plait.models.evaluation.recall import Recall, evaluate_questions, is_questions, read_questions
from plait.models.generation.generate import find_checkpoint, load_tokenizers
from plait.models.training.run_config import RunConfig
from plait.models.training.run_store import trained_on_streams
from plait.pipeline import config as toml
from plait.pipeline.progress import Progress
from plait.pipeline.remote import is_url
from plait.pipeline.shard import shard
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate a run on documents that it was not trained on, or on any others.

    All of a document counts, also spans that the run reads and does not learn (`objective.mask`,
    `objective.learn`), and so data without their column can be evaluated. The run's own
    `validation/loss` counts what it learns."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder (its newest checkpoint is taken), or one of its checkpoints."""
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A stream; a raw source, which the run's tokenizers encode; or a file of JSON lines with
    "question" and "answer". May be repeated. What the run held out, when there is none."""
    held_out: bool = False
    """Of a stream that the run was trained on, the documents that it held out."""
    batches: int = 0
    """End after the tokens of so many of the run's batches, of documents drawn by its seed; 0 is
    all documents."""
    pairs: int = 1000
    """Most documents with a text and a picture (or sound) for caption -> image and image -> caption
    perplexity; 0 is off."""
    ask: str = "Question: {question}\nAnswer:"
    """The prompt in which a question is asked; the answer follows it after a space."""
    max_tokens: int = 32
    """Longest answer, in tokens."""
    batch: int = 8
    """Rows side by side; figures do not depend on it."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    json: bool = False
    """Print the facts as JSON instead of tables."""

    def check(self) -> None:
        """ConfigError for a value out of range."""
        for name, low in (("batches", 0), ("pairs", 0), ("max_tokens", 1), ("batch", 1)):
            if getattr(self, name) < low:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: it should be {low} or more")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A run, ready to be evaluated."""

    folder: Path
    checkpoint: Path
    config: RunConfig
    model: Decoder
    options: EvalOptions

    @classmethod
    def open(cls, options: EvalOptions) -> "Evaluation":
        """Load the run's model and configuration."""
        options.check()
        checkpoint = find_checkpoint(Path(options.run))
        folder = next((f for f in (checkpoint, *checkpoint.parents) if _is_run(f)), None)
        if folder is None:
            raise ConfigError(f"{options.run}: not of a run; config.toml is missing")
        path = folder / "config.toml"
        return cls(
            folder=folder,
            checkpoint=checkpoint,
            config=toml.build(RunConfig, toml.read_toml(path), str(path)),
            model=load(checkpoint, _device(options.device)).eval(),
            options=options,
        )

    def results(self) -> dict[str, StreamResult | Recall]:
        """Everything that was asked for, by the name of its data."""
        c, options = self.config, self.options
        if options.data:
            return {name: self._of(name) for name in options.data}
        if c.validation.data:
            return {name: self.of_stream(Stream(name)) for name in c.validation.data}
        return {name: self.of_stream(Stream(name), held_out=True) for name in c.data}

    def _of(self, name: str) -> StreamResult | Recall:
        path = Path(name)
        if is_questions(path):
            return self.of_questions(path)
        if is_url(name) or (path / "stream.json").is_file() or (path / "job").is_dir():
            return self.of_stream(Stream(name), held_out=self.options.held_out)
        if self.options.held_out:
            raise ConfigError(f"--held-out: {name} is no stream, so none of it was held out")
        with tempfile.TemporaryDirectory(prefix="plait-eval-") as folder:
            tokenizers = sorted((self.folder / "tokenizers").iterdir())
            shard([name], Path(folder) / "stream", tokenizers)
            return self.of_stream(Stream(Path(folder) / "stream"))

    def of_stream(self, stream: Stream, *, held_out: bool = False) -> StreamResult:
        """Loss by modality, bits per byte, and pairs."""
        c, options = self.config, self.options
        trained_on = stream.fingerprint in trained_on_streams(self.folder)
        if held_out and not (trained_on and c.validation.share and not c.validation.data):
            why = "the run held nothing out" if trained_on else "the run was not trained on it"
            raise ConfigError(f"{stream.url}: {why}; without --held-out all of it is evaluated")
        documents = Documents.of(
            stream,
            self.model.vocabulary,
            seed=c.seed,
            held_out=c.validation.share if held_out else None,
            most_tokens=options.batches * c.rows.batch_size * c.rows.seq_len,
        )
        with Progress(f"evaluating {stream.url}", total=documents.tokens, unit="tokens") as bar:
            tally = evaluate(self.model, documents, c.rows.seq_len, options.batch, bar.advance)
        found = find_pairs(
            self.model,
            documents.shuffled(c.seed),
            most=options.pairs,
            seq_len=c.rows.seq_len,
            seed=c.seed,
        )
        asked = 2 * sum(pair.tokens for pairs in found.values() for pair, _ in pairs)
        with Progress("pairs", total=asked, unit="tokens") as bar:
            pairs = evaluate_pairs(self.model, found, c.rows.seq_len, options.batch, bar.advance)
        seen = trained_on and not held_out
        return StreamResult(held_out=held_out, seen=seen, tally=tally, pairs=pairs)

    def of_questions(self, path: Path) -> Recall:
        """Exact-match recall, and the answers' perplexity."""
        options = self.options
        questions = read_questions(path, options.ask)
        tokenizers = load_tokenizers(self.folder, self.model.vocabulary)
        with Progress(f"asking {path}", total=len(questions), unit="questions") as bar:
            return evaluate_questions(
                self.model,
                tokenizers,
                questions,
                max_tokens=options.max_tokens,
                seq_len=self.config.rows.seq_len,
                batch_size=options.batch,
                done=bar.advance,
            )


def main(argv: Sequence[str]) -> int:
    """`plait eval`; 1 where a loss is not a finite number."""
    options = tyro.cli(EvalOptions, args=list(argv), prog="plait eval")
    evaluation = Evaluation.open(options)
    results = evaluation.results()
    if options.json:
        about = {"run": str(evaluation.folder), "checkpoint": str(evaluation.checkpoint)}
        facts = {name: to_facts(result) for name, result in results.items()}
        print(json.dumps({"format": 1, **about, "data": facts}, indent=2, ensure_ascii=False))
    else:
        print_results(str(evaluation.checkpoint), results)
    return 0 if all(map(is_finite, results.values())) else 1


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file()


def _device(name: str) -> str:
    there = torch.cuda.is_available()
    if name.startswith("cuda") and not there:
        raise ConfigError("--device: this machine has no CUDA device; use --device cpu")
    return ("cuda" if there else "cpu") if name == "auto" else name
