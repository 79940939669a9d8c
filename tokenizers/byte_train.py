"""Training of the byte network (byte_network.py) on random crops of documents laid back to back."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.byte_network import BEGIN, ByteNetwork, NetworkConfig, window_mask
from plait.tokenizers.early_stop import EarlyStop, check_patience, set_aside
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState, Loop
from plait.tokenizers.image_fit import threads
from plait.tokenizers.optimizer import make_optimizer, set_rate
from plait.tokenizers.sampling import choose

WEIGHT_DECAY = 0.1
LEAST = 0.1
"""Share of the learning rate at the end."""
ASIDE_BATCHES = 2
"""Batches of crops of the text set aside for `patience`, whose loss is looked at."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and on what to train."""

    steps: int = 1200
    """Updates of the weights."""
    batch: int = 4
    """Crops in an update."""
    seq_len: int = 512
    """Bytes of a crop, a multiple of `window`."""
    lr: float = 1e-3
    """Learning rate, reached after 50 steps and lowered as a cosine."""
    max_mb: int = 64
    """Megabytes to learn from at most; of more, a random choice."""
    threads: int = 1
    """Threads to train with; another number gives other weights."""
    patience: int = 0
    """End early after so many looks, of 50 in the fit, at text that is not learned without a better
    one, and keep the best; 0 trains to the end and learns all text."""

    def check_training(self, window: int) -> None:
        """ConfigError if an option is out of range."""
        if min(self.steps, self.batch, self.seq_len, self.max_mb, self.threads) < 1:
            raise ConfigError("steps, batch, seq_len, max_mb and threads must be 1 or more")
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is {self.lr}: should be above 0 and below 1")
        if self.seq_len % window:
            raise ConfigError(f"seq_len {self.seq_len} should be a multiple of window {window}")
        check_patience(self.patience)


def train(
    config: NetworkConfig,
    samples: Iterable[bytes],
    options: Training,
    *,
    seed: int,
    progress: Progress = ignore,
    state: FitState = KEPT_NOWHERE,
) -> ByteNetwork:
    """A network fitted to the samples; seeded, bit-equal on one machine."""
    chosen = choose(samples, len, options.max_mb * 1_000_000, seed=seed)
    learned, aside = set_aside(chosen, options.patience)
    text, document = laid_out(learned, options.seq_len + 3)
    with threads(options.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ByteNetwork(config)
        generator = torch.Generator().manual_seed(seed)
        optimizer = make_optimizer(network.parameters(), WEIGHT_DECAY, options.lr)
        measure = partial(aside_loss, network, laid_out(aside, options.seq_len + 3), options)
        stop = EarlyStop(network, options.steps, options.patience, measure, progress)
        parts, generators = {"network": network, "stop": stop}, {"crops": generator}
        loop = Loop(state, parts, {"optimizer": optimizer}, generators)
        for step in range(loop.start(), options.steps):
            set_rate(optimizer, step, options.steps, options.lr, LEAST)
            loss = crop_loss(network, text, document, options, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if step % 10 == 0:
                bits = loss.item() / math.log(2)
                progress("training", step / options.steps, bits_per_byte=bits)
            if stop.ends(step):
                break
            loop.end_step(step)
        stop.restore()
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


@torch.no_grad()
def aside_loss(network: ByteNetwork, laid: tuple[Tensor, Tensor], options: Training) -> float:
    """Bits a byte on ASIDE_BATCHES of crops, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    losses = [crop_loss(network, *laid, options, generator) for _ in range(ASIDE_BATCHES)]
    return float(torch.stack(losses).mean()) / math.log(2)


def allowed_keys(document_BNW: Tensor) -> Tensor:
    """Bool [B, N, W, X]: keys of the same document inside the window."""
    before = torch.cat([torch.full_like(document_BNW[:, :1], -1), document_BNW[:, :-1]], 1)
    keys_BNX = torch.cat([before, document_BNW], 2)
    same = document_BNW[..., None] == keys_BNX[:, :, None]
    return same & window_mask(document_BNW.shape[-1])
