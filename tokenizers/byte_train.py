"""Training of the byte network (byte_network.py) on random crops of documents laid back to back."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.tokenizers.base import Progress
from plait.tokenizers.byte_network import BEGIN, ByteNetwork, NetworkConfig, window_mask
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.image_fit import threads
from plait.tokenizers.sampling import choose

WEIGHT_DECAY = 0.1
WARM_UP = 50
"""Steps."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and on what to train."""

    steps: int = 500
    """Updates of the weights."""
    batch: int = 16
    """Crops in an update."""
    seq_len: int = 512
    """Bytes of a crop, a multiple of `window`."""
    lr: float = 2e-3
    """Learning rate, reached after 50 steps and lowered as a cosine."""
    max_mb: int = 64
    """Megabytes to learn from at most; of more, a random choice."""
    threads: int = 1
    """Threads to train with; another number gives other weights."""

    def check_training(self, window: int) -> None:
        """ConfigError if an option is out of range."""
        if min(self.steps, self.batch, self.seq_len, self.max_mb, self.threads) < 1:
            raise ConfigError("steps, batch, seq_len, max_mb and threads must be 1 or more")
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is {self.lr}: should be above 0 and below 1")
        if self.seq_len % window:
            raise ConfigError(f"seq_len {self.seq_len} should be a multiple of window {window}")


def train(
    config: NetworkConfig,
    samples: Iterable[bytes],
    options: Training,
    *,
    seed: int,
    progress: Progress,
) -> ByteNetwork:
    """A network fitted to the samples; seeded, bit-equal on one machine."""
    chosen = choose(samples, len, options.max_mb * 1_000_000, seed=seed)
    text, document = laid_out(chosen, options.seq_len + 3)
    with threads(options.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ByteNetwork(config)
        generator = torch.Generator().manual_seed(seed)
        many = [p for p in network.parameters() if p.ndim > 1]
        few = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": many, "weight_decay": WEIGHT_DECAY}, {"params": few}]
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(options.steps):
            warm = min(1.0, (step + 1) / WARM_UP)
            for group in optimizer.param_groups:
                cosine = 0.55 + 0.45 * math.cos(math.pi * step / options.steps)
                group["lr"] = options.lr * warm * cosine
            loss = crop_loss(network, text, document, options, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if step % 10 == 0:
                bits = loss.item() / math.log(2)
                progress(f"training: {bits:.3f} bits a byte", 0.95 * step / options.steps)
    return network


def laid_out(documents: Iterable[bytes], least: int) -> tuple[Tensor, Tensor]:
    """Inputs int16 [n], BEGIN before each document, and the document's number int32 [n].

    Short data are followed by BEGIN up to `least` inputs and one.
    """
    begin = np.full(1, BEGIN, np.int16)
    parts: list[np.ndarray] = []
    for data in documents:
        parts += [begin, np.frombuffer(data, np.uint8).astype(np.int16)]
    parts.append(begin.repeat(max(least + 1 - sum(map(len, parts)), 1)))
    inputs = np.concatenate(parts)
    return torch.from_numpy(inputs), torch.from_numpy(np.cumsum(inputs == BEGIN, dtype=np.int32))


def crop_loss(
    network: ByteNetwork,
    text: Tensor,
    document: Tensor,
    options: Training,
    generator: torch.Generator,
) -> Tensor:
    """Mean -ln p of the bytes of random crops, each byte foretold inside its document alone."""
    window, T = network.config.window, options.seq_len
    first = torch.randint(0, len(text) - T - 3, (options.batch,), generator=generator)
    place = first[:, None] + torch.arange(T + 4)
    token, of = text[place].long(), document[place]
    shifted = [slice(3 - lag, 3 - lag + T) for lag in range(4)]
    same = [of[:, part] == of[:, 3 : 3 + T] for part in shifted]
    lagged = [
        torch.where(ok, token[:, part], BEGIN) for ok, part in zip(same, shifted, strict=True)
    ]
    blocks = (options.batch, T // window, window)
    inputs_BNW4 = torch.stack(lagged, -1).view(*blocks, 4)
    logp, _ = network(inputs_BNW4, allowed_keys(of[:, 3 : 3 + T].reshape(blocks)))
    target = token[:, 4:]
    target = torch.where(target == BEGIN, -1, target)
    return F.nll_loss(logp.view(-1, 256), target.flatten(), ignore_index=-1)


def allowed_keys(document_BNW: Tensor) -> Tensor:
    """Bool [B, N, W, X]: keys of the same document inside the window."""
    before = torch.cat([torch.full_like(document_BNW[:, :1], -1), document_BNW[:, :-1]], 1)
    keys_BNX = torch.cat([before, document_BNW], 2)
    same = document_BNW[..., None] == keys_BNX[:, :, None]
    return same & window_mask(document_BNW.shape[-1])
