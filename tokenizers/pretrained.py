"""A published codec from a local Hugging Face folder: what pictures and speech have in common.

`config.json` says which of the library's classes it is; the folder may hold the codec alone or a
whole model that has one (Chameleon, Janus, Emu3), of which only the codec's tensors are read.
plait's folder is self-contained: `weights.safetensors` has these tensors under the names and in the
precision in which they were published, so the library's own renaming of older checkpoints goes on
working, and the fingerprint covers every weight. All runs in float32, whatever they are stored in.

Nothing is downloaded, no code of a folder is run, and only safetensors are read. A configuration is
built without memory first ("meta" tensors), and refused if it asks for more than its weights hold.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plait.tokenizers.checks import WEIGHTS_FILE, weights_to_bytes
from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_CONFIG_BYTES = 8 << 20
MAX_WEIGHT_BYTES = 4 << 30
MAX_NUMBER, MAX_DEPTH = 1 << 20, 512
"""Largest number in a configuration, and largest of those that count layers or blocks."""
SPARE = 1 << 24
"""Numbers that a model may hold beside its weights: tables of positions and the like."""
UNSAFE = ("auto_map", "quantization_config", "_name_or_path", "name_or_path")
UNSAFE_PARTS = ("attn_implementation", "experts_implementation", "kernel_config")
"""Settings that are left out: they name code, files of the one who wrote them, or kernels."""
SUBMODELS = {"acoustic_model_config": ("dac",), "semantic_model_config": ("hubert", "wavlm")}
"""X-Codec's parts; the library would build any model that a configuration names."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One class of the library."""

    name: str
    """The model's class in transformers."""
    modality: str
    part: str | None = None
    """`model_type` of the whole models that hold it; there it is `vq_config`."""


KINDS = {
    "chameleon_vqgan": Kind(name="ChameleonVQVAE", modality="image", part="chameleon"),
    "emu3_vqgan": Kind(name="Emu3VQVAE", modality="image", part="emu3"),
    "janus_vqgan": Kind(name="JanusVQVAE", modality="image", part="janus"),
    "encodec": Kind(name="EncodecModel", modality="speech"),
    "dac": Kind(name="DacModel", modality="speech"),
    "mimi": Kind(name="MimiModel", modality="speech"),
    "xcodec": Kind(name="XcodecModel", modality="speech"),
}
"""By `model_type`."""
PREFIXES = ("model.vqmodel.", "vqmodel.")
"""Where a whole model keeps its codec."""
REFUSED = {
    "xcodec2": "it takes the features of a second model beside the sound",
    "neucodec": "it takes the features of a second model beside the sound",
    "glm_image_vqmodel": "it takes the features of a vision model, no pixels",
    "pocket_tts": "its latents are continuous, no codes",
    "vibevoice_acoustic_tokenizer": "its latents are continuous, no codes",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A model of the library, in float32 and evaluation mode, and what it was built from."""

    model: "PreTrainedModel"
    config: dict[str, object]
    """The codec's own configuration, as published, without what is UNSAFE."""
    weights: bytes
    """A safetensors file."""

    @property
    def kind(self) -> str:
        """Its `model_type`, a key of KINDS."""
        return str(self.config["model_type"])


def read_folder(folder: Path) -> tuple[Network, dict[str, object]]:
    """The network of a Hugging Face folder, and its `preprocessor_config.json`, {} if none.

    ConfigError if it holds no codec that is known, or no safetensors, or they do not fit.
    """
    config = _read_json(folder / "config.json")
    prefixes: tuple[str, ...] = ("",)
    for model_type, kind in KINDS.items():
        if kind.part and config.get("model_type") == kind.part:
            part = config.get("vq_config")
            if not isinstance(part, dict):
                raise ConfigError(f"{folder}/config.json: {kind.part} without vq_config")
            config, prefixes = {**part, "model_type": model_type}, PREFIXES
            break
    _check_kind(config, folder)
    config = _without_unsafe(config)
    weights = weights_to_bytes(_read_tensors(folder, prefixes))
    processor = folder / "preprocessor_config.json"
    network = build(config, weights, str(folder))
    return network, _read_json(processor) if processor.exists() else {}


def build(config: Mapping[str, object], weights: bytes, where: str = WEIGHTS_FILE) -> Network:
    """The library's model; ConfigError if configuration and weights do not fit each other."""
    _check_kind(config, Path(where))
    check_numbers(config, where)
    config = _without_unsafe(config)
    try:
        tensors = safetensors.torch.load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{where}: damaged weights: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ConfigError(f"{where}: weights {name} hold values that are not finite")
    model = _load(config, tensors, where)
    return Network(model=model, config=config, weights=weights)


def from_files(config: Mapping[str, object], files: Mapping[str, bytes]) -> Network:
    """The network of one of plait's own folders."""
    if WEIGHTS_FILE not in files:
        raise ConfigError(f"{WEIGHTS_FILE} is missing")
    model = config.get("model")
    if not isinstance(model, dict):
        raise ConfigError("config.json: model is missing; it is the library's configuration")
    return build(model, files[WEIGHTS_FILE])


def _load(
    config: Mapping[str, object], tensors: dict[str, Tensor], where: str
) -> "PreTrainedModel":
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            "published codecs need transformers: pip install 'plait[pretrained]'"
        ) from error
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        cls = getattr(transformers, KINDS[str(config["model_type"])].name)
        settings = cls.config_class.from_dict(dict(config))
        with torch.device("meta"):
            empty = cls(settings)
        held = sum(t.numel() for t in [*empty.parameters(), *empty.buffers()])
        given = sum(t.numel() for t in tensors.values())
        if held > given + SPARE:
            raise ConfigError(
                f"{where}: the configuration asks for {held:,} numbers; the weights are {given:,}"
            )
        model, found = cls.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            output_loading_info=True,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
    except ConfigError:
        raise
    except Exception as error:  # the library raises anything on values that make no sense
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{where}: the library cannot build this model: {reason[-1]}") from error
    finally:
        logging.set_verbosity(verbosity)
    missing = [str(name) for name in [*found["missing_keys"], *found["mismatched_keys"]]]
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} weights are missing or of another shape, as {missing[0]}"
        )
    return model.eval().requires_grad_(False)


def _read_tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors under the first prefix that has some, without the prefix."""
    files = _weight_files(folder)
    if sum(f.stat().st_size for f in files) > MAX_WEIGHT_BYTES and prefixes == ("",):
        raise ConfigError(f"{folder}: more than {MAX_WEIGHT_BYTES >> 30} GiB of weights")
    for prefix in prefixes:
        tensors: dict[str, Tensor] = {}
        size = 0
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:
                    names = list(opened.keys())
                    for name in sorted(n for n in names if n.startswith(prefix)):
                        tensors[name.removeprefix(prefix)] = tensor = opened.get_tensor(name)
                        size += tensor.nbytes
                        if size > MAX_WEIGHT_BYTES:
                            raise ConfigError(f"{folder}: its codec has too many weights")
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{file}: damaged: {error}") from error
        if tensors:
            return tensors
    raise ConfigError(f"{folder}: no weights of a codec under {' or '.join(prefixes)}")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise ConfigError(
            f"{folder}: no model.safetensors here; other formats can run code and are not read "
            "(the library's save_pretrained writes safetensors)"
        )
    names = _read_json(index).get("weight_map")
    names = sorted(set(names.values())) if isinstance(names, dict) else []
    wrong = [n for n in names if Path(n).name != n or not n.endswith(".safetensors")]
    absent = [n for n in names if not (folder / n).is_file()]
    if not names or wrong or absent:
        raise ConfigError(f"{index}: names no files of this folder: {(wrong or absent)[:1]}")
    return [folder / name for name in names]


def _read_json(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: more than {MAX_CONFIG_BYTES >> 20} MiB")
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; a Hugging Face model's folder has it") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(read, dict):
        raise ConfigError(f"{path}: not a configuration, but a {type(read).__name__}")
    return read


def _check_kind(config: Mapping[str, object], where: Path) -> None:
    model_type = config.get("model_type")
    if model_type in KINDS:
        return
    why = REFUSED.get(str(model_type))
    known = ", ".join([*KINDS, *(k.part for k in KINDS.values() if k.part)])
    raise ConfigError(
        f"{where}: model_type is {model_type!r}: "
        + (f"not usable, as {why}" if why else f"no codec that plait knows; there is {known}")
    )


def _without_unsafe(config: Mapping[str, object]) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, value in config.items():
        if name in UNSAFE or any(part in name for part in UNSAFE_PARTS):
            continue
        kept[name] = _without_unsafe(value) if isinstance(value, dict) else value
    return kept


def check_numbers(value: object, where: str, name: str = "") -> None:
    """Bounds on what a configuration can make the library do before weights are looked at."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            allowed = SUBMODELS.get(key)
            named = inner.get("model_type") if isinstance(inner, Mapping) else None
            if allowed and inner is not None and named not in allowed:
                raise ConfigError(
                    f"{where}: {key} is a {named!r}, and should be {' or '.join(allowed)}"
                )
            check_numbers(inner, where, key)
    elif isinstance(value, (list, tuple)):
        if len(value) > MAX_DEPTH:
            raise ConfigError(f"{where}: {name} has {len(value)} entries (at most {MAX_DEPTH})")
        for inner in value:
            check_numbers(inner, where, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        deep = any(word in name for word in ("layer", "block", "num_quant", "n_codebooks"))
        limit = MAX_DEPTH if deep and isinstance(value, int) else MAX_NUMBER
        if not -MAX_NUMBER <= value <= limit:
            raise ConfigError(f"{where}: {name} is {value} (at most {limit:,})")
