"""`plait upcycle RUN --out NEW --preset mot`: a trained run as the seed of one with more weights.

Upcycling (MoMa, arXiv:2407.21770, section 2.5): the feed-forward of each modality is copied to all
experts of its group, whose routers are drawn anew; a shared part that becomes untied is copied for
each modality (dense to Mixture-of-Transformers, Mamba to Mixture-of-Mamba), and a memory comes
beside a feed-forward (`ffn+memory`) with an output projection of zeros: so far the model computes
what it did, to rounding. With experts it does not quite: gates weigh them, and some tokens have
none. `--preset` asks for the parts of a preset.

All else stays, the loader's position too: no row is trained on twice. Step, learning-rate schedule
and the optimizer's moments begin anew (they were made for steps of another size); steps of a
`mixture.schedule` count from the seed's first row. With Gumbel noise on the router (`router_noise`,
1 by default here) experts that are born equal come to differ.

The same command prepares routers for inference that are trained after the model (section 2.4), all
else standing still: `--model.causal-choice auxiliary --model.router-noise 0 --optimizer.only
auxiliary`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from plait.models import checkpoint, flops
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.training import optimizer, saver
from plait.models.training.run_config import PRESETS, RunConfig
from plait.pipeline import config as toml
from plait.pipeline.environment import describe_environment
from plait.pipeline.meters import Meters
from plait.tokenizers.errors import ConfigError

MODEL_MAY_CHANGE = (
    *("channels", "untie", "experts", "capacity", "expert_choice", "causal_choice"),
    *("gate_after_norm", "router_noise", "z_loss", "depth_capacity", "depth_every"),
)
"""Fields of the model that the new run may be given anew; all others shape copied weights."""
PARTS = ("channels", "untie", "experts", "capacity", "depth_capacity", "depth_every")
"""Fields of the model that `--preset` takes from a preset."""
MAY_CHANGE = (
    *("model.", "optimizer.", "objective.", "mixture.", "log.", "checkpoint.", "rows.accumulate"),
    *("validation.every", "validation.batches", "steps", "data", "out", "device", "preset"),
)
"""The same of the run; all others say in what order rows come."""
NAMES = "--preset mot, --model.experts 4, or --model.channels ffn --model.untie qkv o ffn norm"
GROWN = {("ffn", "experts"), ("ffn", "ffn+memory"), ("none", "memory")}
"""What the channel mixer of a block may become."""


def main(argv: Sequence[str]) -> int:
    """`plait upcycle`: options override the configuration of the run that stands first."""
    first, *rest = argv or ["--help"]
    if first in ("-h", "--help"):
        print("The first argument is the folder of a run; feed-forwards become 4 experts each.\n")
        tyro.cli(RunConfig, args=["--help"], prog="plait upcycle RUN")
    path = Path(first) / "config.toml"
    if not path.is_file():
        raise ConfigError(f"{first}: not a run's folder, it has no config.toml")
    old = toml.build(RunConfig, toml.read_toml(path), str(path))
    default = replace(old, out="", model=suggested(old.model))
    asks = not {"-h", "--help"}.isdisjoint(rest)
    preset = "" if asks else tyro.cli(_Preset, args=rest, return_unknown_args=True)[0].preset
    if preset:
        default = replace(default, model=of_preset(old.model, preset))
    new = tyro.cli(RunConfig, default=default, args=rest, prog=f"plait upcycle {first}")
    if "experts" not in new.model.channels:
        new = replace(new, model=replace(new.model, router_noise=old.model.router_noise))
    upcycle_run(Path(first), old, new)
    print(f"wrote {new.out}\nnext: plait train {new.out}/config.toml")
    return 0


def suggested(model: ModelConfig) -> ModelConfig:
    """What becomes of a model where nothing else is asked for: MoMa with 4 experts a modality."""
    channels = tuple("experts" if channel == "ffn" else channel for channel in model.channels)
    if "experts" not in channels or (channels == model.channels and set(model.experts) != {1}):
        return model
    untie = tuple(part for part in model.untie if part != "ffn")
    return replace(model, channels=channels, untie=untie, experts=(4,), router_noise=1.0)


@dataclass(frozen=True)
class _Preset:
    preset: str = ""


def of_preset(model: ModelConfig, preset: str) -> ModelConfig:
    """A model with the parts of a preset, and all else as it is."""
    path = PRESETS / f"{preset}.toml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ConfigError(f"preset: no {preset!r}; there is {there}")
    wanted = ModelConfig.from_table(toml.read_toml(path)["model"], str(path))  # type: ignore
    parts = {name: getattr(wanted, name) for name in PARTS}
    untie = dict.fromkeys((*model.untie, *wanted.untie))
    parts["untie"] = tuple(part for part in untie if part != "ffn" or "ffn" in wanted.channels)
    if not model.has_memory:
        parts |= {n: getattr(wanted, n) for n in vars(wanted) if n.startswith("memory_")}
    if wanted.has_memory:
        blocks = zip(model.blocks, wanted.channels * model.n_layers, strict=False)
        parts["channels"] = tuple(
            {"ffn": "ffn+memory", "none": "memory"}.get(own, own) if "memory" in new else own
            for (_, own), new in blocks
        )
    noise = 1.0 if "experts" in wanted.channels and "experts" not in model.channels else None
    return replace(model, **parts, router_noise=model.router_noise if noise is None else noise)


def upcycle_run(run: Path, old: RunConfig, new: RunConfig) -> None:
    """Write the folder `new.out`, with a checkpoint at step 0; it appears whole or not at all.

    ConfigError where the folder exists, the run has no checkpoint, or the two do not fit.
    """
    out = Path(new.out)
    if not new.out:
        raise ConfigError("no output: name the new run's folder with --out NEW")
    if out.exists():
        raise ConfigError(f"{out}: exists already; name another --out")
    for name, (before, now) in toml.differences(old, new).items():
        if not name.startswith(MAY_CHANGE):
            raise ConfigError(
                f"{name}: {before!r} in {run}, now {now!r}; the new run goes on with the rows that "
                "come next, so what orders them has to stay"
            )
    newest = checkpoint.newest_checkpoint(run)
    if newest is None:
        raise ConfigError(f"{run}: no checkpoint here; train it first")
    model = upcycle(checkpoint.load(newest), new.model, new.seed)
    temporary = out.with_name(f".{out.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    with saver.Saver(temporary) as writer:
        writer.save(model, optimizer.Optimizer(model, new.optimizer), _first_state(newest))
        writer.wait(last=True)
    (temporary / "config.toml").write_text(toml.to_toml(new), encoding="utf-8")
    shutil.copy(run / "vocabulary.json", temporary)
    shutil.copytree(run / "tokenizers", temporary / "tokenizers")
    environment = {
        **json.loads((run / "environment.json").read_text(encoding="utf-8")),
        **describe_environment(),
        "parameters": flops.count_parameters(model),
        "upcycled_from": str(newest),
    }
    text = json.dumps(environment, indent=2)
    (temporary / "environment.json").write_text(text, encoding="utf-8")
    temporary.rename(out)


def _first_state(seed: Path) -> dict[str, object]:
    """The loader's position and the tokens so far are the seed's; all other counts are 0."""
    state = json.loads((seed / "state.json").read_text(encoding="utf-8"))
    meters = Meters(**{**state["meters"], "modalities": tuple(state["meters"]["modalities"])})
    meters.clear()
    new = {"step": 0, "meters": meters.state(), "watch": {}, "unreported": {}}
    return {**state, **new, "validation_loss": None}


def upcycle(decoder: Decoder, config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder of `config` with the weights of `decoder`; what is new is drawn by the seed.

    ConfigError, with what to do, where a weight of the one has no place in the other.
    """
    _check(decoder.config, config, len(decoder.vocabulary.modalities))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = Decoder(config, decoder.vocabulary)
    modalities = len(decoder.vocabulary.modalities)
    before, sizes = _sizes(decoder.config, modalities), _sizes(config, modalities)
    state = decoder.state_dict()
    copies = {
        name: _copied(name, drawn, state, sizes, before == sizes)
        for name, drawn in new.state_dict().items()
    }
    new.load_state_dict(copies)
    return new


def _copied(
    name: str, drawn: Tensor, state: Mapping[str, Tensor], sizes: list[int], same_experts: bool
) -> Tensor:
    """What a tensor of the new model begins with; `drawn` is what it was drawn as."""
    found = state.get(name)
    if found is None and ".router." not in name and f"{name}.weight" not in state:
        memory = not name.endswith((".out", ".out_bias"))
        return drawn if memory else torch.zeros_like(drawn)
    if ".router." in name and (found is None or not (same_experts or ".depth." in name)):
        return drawn
    if found is not None and found.shape[1:] == drawn.shape[1:] and len(found) in (1, len(drawn)):
        return found.expand_as(drawn)
    feed_forward = state[f"{name}.weight"] if found is None else found
    by_modality = feed_forward.expand(len(sizes), *feed_forward.shape[1:])
    return by_modality.repeat_interleave(torch.tensor(sizes, device=drawn.device), dim=0)


def _check(old: ModelConfig, new: ModelConfig, modalities: int) -> None:
    if old == new:
        raise ConfigError(f"nothing would change; say what should: {NAMES}")
    for field in fields(ModelConfig):
        before, now = getattr(old, field.name), getattr(new, field.name)
        new_memory = field.name.startswith("memory_") and not old.has_memory
        if field.name not in MODEL_MAY_CHANGE and before != now and not new_memory:
            raise ConfigError(
                f"model.{field.name}: {before!r} in the run, now {now!r}; trained weights have "
                "that shape, so it has to stay"
            )
    for number, ((_, before), (_, now)) in enumerate(zip(old.blocks, new.blocks, strict=True)):
        if before != now and (before, now) not in GROWN:
            ways = ", ".join(f"{a} becomes {b}" for a, b in sorted(GROWN))
            raise ConfigError(
                f"model.channels: block {number} has {before!r} and cannot become {now!r}; {ways}"
            )
    if new.has_memory and not old.has_memory and not new.memory_gate:
        raise ConfigError("model.memory_gate: a memory without it cannot begin as nothing")
    tied = [part for part in old.untie if part not in new.untie]
    if tied and not (tied == ["ffn"] and "ffn" not in new.channels):
        raise ConfigError(
            f"model.untie: {', '.join(tied)} of the run have weights for each modality and cannot "
            f"be shared again; give --model.untie {' '.join(old.untie)} or more"
        )
    if any(old.depths) and old.depths != new.depths:
        raise ConfigError(
            f"model.depth_capacity, depth_every: blocks {_numbers(old.depths)} of the run are "
            f"passed by some tokens only, now {_numbers(new.depths)}; such a block has to stay one"
        )
    if "experts" not in old.channels:
        return
    before, now = _sizes(old, modalities), _sizes(new, modalities)
    if before != now and set(before) != {1}:
        raise ConfigError(
            f"model.experts: {before} in the run, now {now}; only one expert a modality can be "
            f"copied to several: begin with such a run, or keep --model.experts "
            f"{' '.join(map(str, old.experts))}"
        )
    if before != now and old.blocks != new.blocks:
        raise ConfigError(
            "model.channels: the run has experts and feed-forwards; upcycle one of them at a time"
        )


def _numbers(depths: tuple[bool, ...]) -> list[int]:
    return [i for i, depth in enumerate(depths) if depth]


def _sizes(config: ModelConfig, modalities: int) -> list[int]:
    """Experts of each modality; ConfigError as in `Router` where their number does not fit."""
    if "experts" in config.channels and len(config.experts) not in (1, modalities):
        raise ConfigError(
            f"model.experts: {list(config.experts)} for {modalities} modalities; "
            "give one number, or one for each modality"
        )
    return list(config.experts * (modalities // len(config.experts)))
