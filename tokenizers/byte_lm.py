"""Patches by the entropy of a small byte language model, an offline pre-process.

`plait fit entropy` makes it. It marks bytes as `byte_patch.py` does; only the source of entropies
differs. Each block of a document is computed alone, in one thread and always with the same shapes
(with others, half of the values differ in the last bits), so an entropy is the same to the last bit
however the text is cut or batched; they are rounded to 1/8192 bit. Another machine or another
version of torch may round differently, which is why a stream keeps the starts.

Cost, on one core: 34 kB/s; 0.3 kB/s where bytes come one at a time, as a block that is not full is
padded and computed again. 1200 steps on 4 crops (2.5 MB of text in many languages and code, 181
CPU-seconds) gave 2.34 bits a byte on the beginnings of held-out documents, and counts over all 49
MB (`byte_entropy.py`) 2.30 there in 2 s: it pays only where it is trained for longer.
benchmarks/byte_patches.py measures both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

import numpy as np
import torch

from plait.tokenizers import byte_patch
from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.byte_entropy import UNIT
from plait.tokenizers.byte_network import BEGIN, ByteNetwork, NetworkConfig, Previous, window_mask
from plait.tokenizers.byte_options import FitOptions as PatchOptions
from plait.tokenizers.byte_options import Method, options_from_config, options_to_config
from plait.tokenizers.byte_patch import BytePatch
from plait.tokenizers.byte_threshold import part_for_threshold, with_limit
from plait.tokenizers.byte_train import Training, train
from plait.tokenizers.checks import WEIGHTS_FILE, weights_from_files, weights_to_bytes
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState
from plait.tokenizers.image_fit import threads
from plait.tokenizers.sampling import choose

CALIBRATION_BYTES = 1 << 18
"""Bytes at most that set the threshold and are not learned."""
EVALUATED_BYTES = 1 << 18
"""Held-out bytes that are looked at, at random where there are more."""
EVALUATED_EACH = 1 << 12


@dataclass(frozen=True, kw_only=True)
class FitOptions(PatchOptions, Training):
    """Fitting a byte language model, and patches by its entropies."""

    method: Method = "entropy"
    """Only `entropy`."""
    dim: int = 128
    """Width of the network."""
    n_layers: int = 3
    """Layers."""
    n_heads: int = 4
    """Heads of attention."""
    window: int = 128
    """Bytes that a layer looks back."""
    hash_bits: int = 13
    """Each length of hashed n-grams (2, 3, 4) has 2^hash_bits embeddings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method != "entropy":
            raise ConfigError(f"method is {self.method!r}; this model is for `entropy` alone")
        self.check_training(self.window)

    @property
    def network(self) -> NetworkConfig:
        """The sizes of the network."""
        names = (field.name for field in fields(NetworkConfig))
        return NetworkConfig(**{name: getattr(self, name) for name in names})


class LMPatch(BytePatch):
    """Bytes with patches by a language model's entropies."""

    source: "LMEntropies"

    def config(self) -> dict[str, object]:
        """The rule and the network's sizes."""
        return {
            **options_to_config(self.options),
            "network": asdict(self.source.network.config),
        }

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if an option is out of range or the weights are damaged."""
        sizes = config.get("network")
        rest = {name: value for name, value in config.items() if name != "network"}
        try:
            network_config = NetworkConfig(**sizes)  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigError(f'config.json: "network" does not fit: {error}') from None
        options = options_from_config(rest)
        return cls(options, LMEntropies(_network(network_config, files)))


class LMEntropies:
    """A source of entropies: the network's, block by block."""

    def __init__(self, network: ByteNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    def stream(self) -> "LMStream":
        """Entropies of documents that come in pieces."""
        return LMStream(self.network)

    def bits(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """-log2 of the probability of each byte, float64 [n]."""
        return LMStream(self.network).read(data, firsts)[1]

    def files(self) -> dict[str, bytes]:
        """`weights.safetensors`."""
        return {WEIGHTS_FILE: weights_to_bytes(self.network.state_dict())}


class LMStream:
    """Entropies of documents that come in pieces."""

    def __init__(self, network: ByteNetwork) -> None:
        self.network = network
        self.window = network.config.window
        self.mask = window_mask(self.window)
        self._begin()

    def _begin(self) -> None:
        """Stand before a document."""
        self.previous: Previous | None = None
        self.inputs = np.full(4, BEGIN, np.int64)
        """Three inputs before the open block, those in it, and the next one."""

    def push(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """Float32 [n] in bits, for the next bytes, uint8 [n]; documents begin at `firsts`."""
        return self.read(data, firsts)[0]

    def read(self, data: np.ndarray, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entropies, and bits of the bytes themselves (float64)."""
        entropies, bits = np.empty(len(data), np.float32), np.empty(len(data))
        bounds = [0, *firsts.tolist(), len(data)]
        with threads(1), torch.inference_mode():
            for part in range(len(bounds) - 1):
                if part:
                    self._begin()
                at, end = bounds[part : part + 2]
                while at < end:
                    stop = min(end, at + self.window - (len(self.inputs) - 4))
                    entropies[at:stop], bits[at:stop] = self._in_block(data[at:stop])
                    at = stop
        return entropies, bits

    def _in_block(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for the next bytes of the open block; they fit into it."""
        begin = len(self.inputs) - 4
        self.inputs = np.concatenate([self.inputs, data.astype(np.int64)])
        logp_W256, kept = self._block()
        entropy_W = -(logp_W256.exp() * logp_W256).sum(-1).double().numpy() / np.log(2)
        entropy = entropy_W[begin : begin + len(data)]
        bits = -logp_W256.double().numpy()[begin + np.arange(len(data)), data] / np.log(2)
        if len(self.inputs) - 4 == self.window:
            self.previous, self.inputs = kept, self.inputs[-4:]
        return (np.rint(entropy / UNIT) * UNIT).astype(np.float32), bits

    def _block(self) -> tuple[torch.Tensor, Previous]:
        """The open block, padded to its full size: its shapes are always the same."""
        padded = np.zeros(self.window + 3, np.int64)
        known = self.inputs[: self.window + 3]
        padded[: len(known)] = known
        inputs_W4 = np.lib.stride_tricks.sliding_window_view(padded, 4)[:, ::-1].copy()
        allowed = self.mask.clone()
        if self.previous is None:
            allowed[:, : self.window] = False
        logp, kept = self.network(
            torch.from_numpy(inputs_W4)[None, None], allowed[None, None], self.previous
        )
        return logp[0, 0], kept


def fit(
    samples: Iterable[bytes],
    options: FitOptions,
    *,
    seed: int = 0,
    progress: Progress = ignore,
    state: FitState = KEPT_NOWHERE,
) -> LMPatch:
    """Train the network, then find the threshold; equal samples and seed give equal weights."""
    kept: list[bytes] = []
    learned = part_for_threshold(samples, kept, CALIBRATION_BYTES)
    network = train(options.network, learned, options, seed=seed, progress=progress, state=state)
    source = LMEntropies(network)
    progress("finding the threshold", 1.0)
    return LMPatch(with_limit(options, source, kept, progress), source)


def evaluate(tokenizer: LMPatch, held_out: Iterable[bytes]) -> dict[str, float]:
    """As of `byte_patch`, over the first 4 KiB of each sample, or EVALUATED_BYTES of them."""
    begins = (sample[:EVALUATED_EACH] for sample in held_out)
    return byte_patch.evaluate(tokenizer, choose(begins, len, EVALUATED_BYTES))


def _network(config: NetworkConfig, files: Mapping[str, bytes]) -> ByteNetwork:
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in ByteNetwork(config).state_dict().items()}
    weights = weights_from_files(files, {name: len(shape) for name, shape in shapes.items()})
    wrong = [name for name, t in weights.items() if t.shape != shapes[name]]
    if wrong or any(t.dtype != torch.float32 for t in weights.values()):
        raise ConfigError(f"{WEIGHTS_FILE} does not fit config.json: {', '.join(wrong) or 'dtype'}")
    network = ByteNetwork(config)
    network.load_state_dict(weights)
    return network
