"""The command line: `plait COMMAND ...`; a command's module is imported when it is called."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from plait import __version__
from plait.tokenizers.errors import PlaitError

COMMANDS = {
    "demo": (
        "plait.pipeline.demo",
        "the whole way on sample data: fit, shard, train, generate",
    ),
    "fit": ("plait.pipeline.fit", "train a tokenizer for text, image, speech or bytes"),
    "shard": ("plait.pipeline.shard", "tokenize raw data into a sharded stream"),
    "inspect": ("plait.pipeline.inspect.command", "statistics of a stream, a run or a tokenizer"),
    "verify": ("plait.pipeline.verify", "check every checksum, count and id range of a stream"),
    "train": ("plait.train", "train a model on a stream; an existing run is resumed"),
    "upcycle": (
        "plait.models.training.upcycle",
        "begin a run with experts from a trained one without",
    ),
    "eval": (
        "plait.models.evaluation.evaluate",
        "losses, bits per byte and answers of a run on any data",
    ),
    "generate": ("plait.models.generation.generate", "sample text, images and speech from a run"),
    "list": ("plait.pipeline.catalog", "what tokenizers, sources and presets there are"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 (fine), 1 (problems found) or 2 (wrong use)."""
    # Threads of GNU OpenMP that spin while they wait make a busy machine up to 100 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"plait {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"plait: there is no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    return run(name, rest)


def run(name: str, argv: Sequence[str]) -> int:
    """Run a command by name; what a user can cause is printed without a traceback."""
    try:
        return import_module(COMMANDS[name][0]).main(list(argv))
    except PlaitError as error:
        if os.environ.get("PLAIT_TRACEBACK"):
            raise
        print(f"plait {name}: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:  # tyro: after --help, or after it has said which option is wrong
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print(f"\nplait {name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def usage() -> str:
    """The text of `plait --help`."""
    lines = [f"  {name:<9} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: plait COMMAND [options]",
            "",
            "Raw text, images, speech and bytes to one modality-tagged token stream,",
            "and modality-aware models trained on it.",
            "",
            *lines,
            "",
            "`plait COMMAND --help` lists a command's options; start with `plait demo`.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
