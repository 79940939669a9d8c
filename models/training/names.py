"""Patterns that pick parameters by name, and the rows of a parameter that belong to a modality.

A pattern is a part of a name (`router`), or, with `*`, `?` or `[...]` in it, a glob of the whole
(`blocks.0.*`), or `modality:text`: that modality's slices of all stacked weights, its experts and
routers, and the rows of its ids in the embedding and the head. A tokenizer's begin and end markers
go with its modality; <pad>, <bos> and <eos> with text. What modalities share is in none.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from plait.models.decoder import Decoder
from plait.models.experts import Experts
from plait.models.layers import ModalityLayerNorm, ModalityLinear, ModalityNorm
from plait.models.mamba import Mamba
from plait.models.routing import Router
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError

MODALITY = "modality:"


def matching(pattern: str, names: Collection[str], where: str) -> list[str]:
    """The names that a pattern picks; ConfigError with near ones where there are none."""
    if any(sign in pattern for sign in "*?["):
        found = [name for name in names if fnmatchcase(name, pattern)]
    else:
        found = [name for name in names if pattern in name]
    if not found or not pattern:
        parts = [".".join(words[:n]) for words in _words(names) for n in range(1, len(words) + 1)]
        parts += [word for words in _words(names) for word in words]
        near = difflib.get_close_matches(pattern, dict.fromkeys(parts), n=3, cutoff=0.5)
        tops = dict.fromkeys(words[0] for words in _words(names))
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"names begin with {', '.join(tops)}"
        )
        raise ConfigError(f"{where}: no parameter has {pattern} in its name; {hint}")
    return found


def picked(pattern: str, model: Decoder, where: str) -> dict[str, Tensor]:
    """By parameter, which of its rows (first axis) a pattern picks, bool; none that has none."""
    parameters = dict(model.named_parameters())
    if not pattern.startswith(MODALITY):
        names = matching(pattern, parameters, where)
        return {name: torch.ones(len(parameters[name]), dtype=torch.bool) for name in names}
    modality, there = pattern.removeprefix(MODALITY), model.vocabulary.modalities
    if modality not in there:
        raise ConfigError(f"{where}: no modality {modality!r}; the data has {', '.join(there)}")
    if len(there) == 1:
        raise ConfigError(f"{where}: {pattern} is all there is; name parameters instead")
    rows = {n: owner == there.index(modality) for n, owner in modality_rows(model).items()}
    return {name: mask for name, mask in rows.items() if name in parameters}


def modality_rows(model: Decoder) -> dict[str, Tensor]:
    """The modality of each row of the parameters and buffers that tell modalities apart, int64."""
    vocabulary = model.vocabulary
    each = torch.arange(len(vocabulary.modalities))
    found = dict.fromkeys(("embedding", "head", "prior_V"), owners(vocabulary))
    found |= {"modality_embedding": each, "modality_head": each}
    for prefix, module in model.named_modules():
        for name, rows in _rows(module, each):
            found[f"{prefix}.{name}"] = rows
    return found


def owners(vocabulary: Vocabulary) -> Tensor:
    """The modality of each id, int64 [V]; markers are their tokenizer's, not text."""
    table = torch.from_numpy(vocabulary.modality_table.astype("int64"))
    for info in vocabulary.tokenizers:
        for marker in (vocabulary.begin(info.name), vocabulary.end(info.name)):
            if marker is not None:
                table[marker] = vocabulary.modalities.index(info.modality)
    return table


def short(names: Collection[str]) -> str:
    """Some of the names for a person, those of all blocks as one: `blocks.*.mixer.o.weight`."""
    kinds = [".".join("*" if word.isdigit() else word for word in words) for words in _words(names)]
    found = list(dict.fromkeys(kinds))
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return ", ".join(found[:6]) + more


def _rows(module: torch.nn.Module, each: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, modality of each row) of what a module itself owns."""
    if isinstance(module, ModalityLinear | ModalityNorm | ModalityLayerNorm):
        names = [name for name, p in module.named_parameters() if len(p) == len(each)]
        yield from ((name, each) for name in names if len(each) > 1)
    elif isinstance(module, Mamba) and len(module.dt_bias) == len(each) > 1:
        yield "dt_bias", each
    elif isinstance(module, Router | Experts):
        sizes = (module if isinstance(module, Router) else module.router).sizes
        if len(sizes) == len(each) > 1:
            by_expert = each.repeat_interleave(torch.tensor(sizes))
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            yield from ((n, each if n == "auxiliary_in" else by_expert) for n, _ in own)


def _words(names: Collection[str]) -> Iterator[Sequence[str]]:
    return (name.split(".") for name in names)
