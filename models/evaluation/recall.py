"""Exact-match recall: whether the likeliest answer to a question is the right one.

A file of JSON lines, each with "question" and "answer": a string, or several that are all right.
What is said is sampled greedily, ends with its line, and is compared as SQuAD does
(arXiv:1606.05250): lower case, without punctuation, articles and doubled spaces. Beside it, the
perplexity of the first right answer's tokens after the question. Questions may hold
`<image:PATH>` and `<speech:PATH>`.
"""

import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.models.decoder import Decoder
from plait.models.evaluation.scoring import Piece, nats_of
from plait.models.generation.grammar import Span, Walk
from plait.models.generation.prompts import encode_prompt
from plait.models.generation.sampling import Row, Sampling, sample
from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.errors import ConfigError

GREEDY = Sampling(temperature=0)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, as the prompt asks it, and its right answers."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What came of a file of questions."""

    questions: int
    right: int
    tokens: int
    """Of the right answers."""
    loss: float
    """Mean nats a token of the right answers."""

    @property
    def exact_match(self) -> float:
        """Share of the questions that were answered."""
        return self.right / self.questions


def is_questions(path: Path) -> bool:
    """Whether a file is JSON lines of which the first has a question and an answer."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"question", "answer"} <= value.keys()


def read_questions(path: Path, ask: str) -> list[Question]:
    """The questions, each put where `ask` has `{question}`; ConfigError for a bad line."""
    if "{question}" not in ask:
        raise ConfigError(f"--ask {ask!r}: it should hold {{question}}")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            question, answers = _read_line(line, f"{path}, line {number}")
            found.append(Question(prompt=ask.replace("{question}", question), answers=answers))
    return found


def _read_line(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    try:
        value = json.loads(line)
        question, answer = value["question"], value["answer"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: no question and answer in JSON: {error!r}") from None
    answers = tuple(answer) if isinstance(answer, list) else (answer,)
    words = [question, *answers]
    if not answers or not all(isinstance(word, str) and word.strip() for word in words):
        raise ConfigError(f"{where}: a question and its answer, or a list of them, should be text")
    return question, answers


def evaluate_questions(
    model: Decoder,
    tokenizers: dict[str, Tokenizer],
    questions: Sequence[Question],
    *,
    max_tokens: int,
    seq_len: int,
    batch_size: int,
    done: Callable[[int], None] = lambda questions: None,
) -> Recall:
    """Answer all questions, `batch_size` of them at a time. ConfigError without text."""
    name = next((n for n, t in tokenizers.items() if t.modality == "text"), None)
    if name is None:
        raise ConfigError("questions are asked in text, for which the run has no tokenizer")
    vocabulary, right, nats = model.vocabulary, 0, []
    span = Span.of(name, tokenizers[name], vocabulary, max_tokens=max_tokens, seconds=0)
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        prompts = [tuple(encode_prompt(q.prompt, tokenizers, vocabulary)) for q in batch]
        rows = [Row(prompt=ids, walk=Walk(span), draws=np.random.default_rng(0)) for ids in prompts]
        sample(model, rows, GREEDY, batch_size)
        for question, row in zip(batch, rows, strict=True):
            right += is_right(_text(row, tokenizers[name]), question.answers)
        whole = [encode_prompt(f"{q.prompt} {q.answers[0]}", tokenizers, vocabulary) for q in batch]
        pieces = [_answer(ids, prompt) for ids, prompt in zip(whole, prompts, strict=True)]
        longest = max(seq_len, *(len(piece.ids) for piece in pieces))
        nats += nats_of(model, pieces, longest, batch_size)
        done(len(batch))
    every = np.concatenate(nats)
    return Recall(
        questions=len(questions), right=right, tokens=every.size, loss=float(every.mean())
    )


def is_right(said: str, answers: Sequence[str]) -> bool:
    """Whether the first line of what was said is one of the answers.

    >>> is_right(" The  Eiffel tower.\\nQuestion", ["Eiffel Tower"])
    True
    """
    line = next((line for line in said.splitlines() if line.strip()), "")
    return bool(line) and normalised(line) in {normalised(answer) for answer in answers}


def normalised(text: str) -> str:
    """Lower case without punctuation, articles (unless they are all) and doubled spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    without = re.sub(r"\b(a|an|the)\b", " ", kept)
    return " ".join((without if without.strip() else kept).split())


def _text(row: Row, tokenizer: Tokenizer) -> str:
    ids = [i for part in row.walk.parts for i in part.ids]
    return str(tokenizer.decode(Encoded(ids=np.array(ids, np.int64))))


def _answer(ids: Sequence[int], prompt: Sequence[int]) -> Piece:
    """The whole, of which what is not the prompt counts; a token may span the border."""
    same = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), None)
    return Piece(ids=np.array(ids, np.int64), first=len(prompt) if same is None else same)
