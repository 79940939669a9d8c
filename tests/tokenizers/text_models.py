"""Small models for the tests of text tokenizers, and text of many scripts."""

import json
import random
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from plait.tokenizers.text_merges import PATTERNS

SCRIPTS = [
    "The quick brown fox jumps; it'll DON'T stop.\n\n\tIndented  twice,   thrice.\n",
    "def f(x):\n    return x ** 2  # 1234567890\r\n\r\nprint(f'{x!r:>10}')\n",
    "Größe naïve façade — “quoted” straße ŒUVRE ı İ ſ K\n",
    "日本語のテキストです。中文分词没有空格。한국어 문장입니다.\n",
    "नमस्ते दुनिया, यह हिन्दी है। বাংলা ভাষা தமிழ் ภาษาไทยไม่มีช่องว่าง\n",
    "العربية تُكتب من اليمين. עברית עם ניקוד שָׁלוֹם. Ελληνικά, кириллица, ქართული, አማርኛ\n",
    "\U0001f469\u200d\U0001f680\U0001f1e9\U0001f1ea x\u0301\u0302 ﬁ\n",
    "\u00a0\u3000\u2028\u2029\x85\x1f\x00 ½ ² Ⅻ ٣\n",
    "<|endoftext|> </s> <s> <unk> [PAD] <0x41> <|im_start|>system\n",
    "      \n   \t\t \n x    y\u2581z \u2581\n",
]
AWKWARD = [
    "",
    " ",
    "\n",
    "\r\n\r\n",
    "  a",
    "a  ",
    "\u2581",
    "'",
    "''s 's",
    "aaaaaaaaaaaaaaaaaaa",
    "\x00",
]


def mixed(count: int, seed: int = 0) -> list[str]:
    """Documents in which lines, characters and white space of all scripts are shuffled."""
    rng = random.Random(seed)
    letters = "".join(SCRIPTS)
    return [
        rng.choice(SCRIPTS) + "".join(rng.choices(letters, k=30)) + " " * rng.randrange(5)
        for _ in range(count)
    ]


def byte_level(
    documents: list[str], *, pattern: str = PATTERNS["gpt2"], size: int = 500, **changes: object
) -> dict:
    """A parsed `tokenizer.json` of byte-level BPE with special tokens; some keys changed."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "</s>"],
        show_progress=False,
    )
    library.train_from_iterator(documents, trainer)
    return json.loads(library.to_str()) | changes


def word_piece(documents: list[str]) -> bytes:
    """A `tokenizer.json` like BERT's: lower case, unknown words, nothing of bytes."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    library.train_from_iterator(documents, trainer)
    library.enable_padding(length=64)
    library.enable_truncation(8)
    return library.to_str().encode()


def stock_sentencepiece(documents: list[str], path: Path, kind: str = "unigram") -> bytes:
    """A SentencePiece model with its default settings, which change text."""
    lines = [line for text in documents for line in text.split("\n") if line]
    with (path / "stock.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            model_type=kind,
            vocab_size=600,
            byte_fallback=True,
            hard_vocab_limit=False,
            user_defined_symbols=["<|im_start|>"],
            control_symbols=["<|control|>"],
            minloglevel=2,
        )
    return (path / "stock.model").read_bytes()
