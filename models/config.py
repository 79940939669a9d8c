"""What a decoder is made of; `[model]` in a run's TOML file, one key a field.

A block is a sequence mixer and a channel mixer, each chosen by a pattern that repeats over the
blocks, so the published families and their mixtures are points of one space. Imports no torch.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self, get_args

from plait.tokenizers.errors import ConfigError

Mixer = Literal["attention", "mamba"]
Channel = Literal["ffn", "experts", "memory", "ffn+memory", "none"]
Part = Literal["qkv", "o", "ffn", "norm", "in", "x", "dt", "out"]

_NEEDS: dict[str, tuple[str, str]] = {
    "qkv": ("mixers", "attention"),
    "o": ("mixers", "attention"),
    "ffn": ("channels", "ffn"),
    "in": ("mixers", "mamba"),
    "x": ("mixers", "mamba"),
    "dt": ("mixers", "mamba"),
    "out": ("mixers", "mamba"),
}
"""The pattern, and what must be in it, for a part to exist."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and parts of a decoder; anything that does not fit together raises ConfigError."""

    dim: int = 128
    """Width of the residual stream."""
    n_layers: int = 4
    """Number of blocks. Two Mamba blocks without feed-forward weigh as one transformer block."""
    mixers: tuple[Mixer, ...] = ("attention",)
    """Sequence mixer of each block: a pattern, repeated."""
    channels: tuple[Channel, ...] = ("ffn",)
    """Channel mixer of each block: a pattern, repeated; "none" leaves the sequence mixer alone, and
    "ffn+memory" sets a memory beside the feed-forward, where "memory" takes its place."""
    untie: tuple[Part, ...] = ()
    """Parts with their own weights for each modality: qkv, o (attention), ffn, norm (norms of the
    blocks and of queries and keys), in, x, dt, out (Mamba)."""
    norm: Literal["pre", "post"] = "pre"
    """Normalise what goes into a sublayer, or (Chameleon-34B, MoT) what comes out of it."""
    norm_eps: float = 1e-5
    """Added to the mean square in a norm."""
    z_loss: float = 0.0
    """Weight of the squared log-partition of the logits in the gradient; 1e-5 in Chameleon."""

    n_heads: int = 4
    """Attention heads."""
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    """Norm of queries and keys over a head, before the rotation."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""

    hidden_dim: int = 0
    """Inner width of a feed-forward and of an expert; 0 is 8/3 of dim, up to a multiple of 64."""

    state_dim: int = 16
    """States of each Mamba channel."""
    conv_width: int = 4
    """Taps of Mamba's convolution."""
    expand: int = 2
    """Inner width of Mamba over dim."""
    dt_rank: int = 0
    """Rank of Mamba's step size; 0 is dim / 16, rounded up."""

    experts: tuple[int, ...] = (4,)
    """Experts of each modality, in the order of the vocabulary's modalities; one number for all."""
    capacity: float = 1.0
    """Experts that a token has on average; 1 costs what one feed-forward costs."""
    expert_choice: Literal["batch", "row"] = "batch"
    """Among which tokens experts choose in training: those of a micro-batch, or of each row."""
    causal_choice: Literal["threshold", "auxiliary"] = "threshold"
    """How tokens are told to experts in eval and generation, where later ones must not matter."""
    gate_after_norm: bool = True
    """With norm = post: normalise an expert's output before its gate, not (as published) after;
    for a token with one expert the norm cancels the gate, and with it the router's gradient."""
    router_noise: float = 0.0
    """Scale of the Gumbel-sigmoid noise on router logits in training; 1 in MoMa's upcycling."""

    depth_capacity: float = 1.0
    """Share of a micro-batch's tokens that pass a block of mixture-of-depths, the others staying on
    the residual; 1 is off, 0.25 in MoMa. How they are told in eval is `causal_choice`."""
    depth_every: int = 2
    """Which blocks those are: the first of every so many."""

    memory_keys: int = 64
    """Half keys of a head; a memory has the square of it slots."""
    memory_heads: int = 4
    """Heads that look up independently."""
    memory_top_k: int = 16
    """Slots that a head reads."""
    memory_key_dim: int = 0
    """Width of a query, both halves; 0 is half the value's width."""
    memory_value_dim: int = 0
    """Width of a slot's value; 0 is dim."""
    memory_gate: bool = True
    """Whether the input gates what was read ("Memory+")."""
    memory_qk_norm: bool = True
    """Whether queries and half keys are normalised."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_choices()
        self._check_fit()

    @property
    def blocks(self) -> tuple[tuple[Mixer, Channel], ...]:
        """Mixer and channel mixer of each block, the patterns written out."""
        return tuple(
            (self.mixers[i % len(self.mixers)], self.channels[i % len(self.channels)])
            for i in range(self.n_layers)
        )

    @property
    def depths(self) -> tuple[bool, ...]:
        """Which blocks only some tokens pass."""
        return tuple(
            self.depth_capacity < 1 and i % self.depth_every == 0 for i in range(self.n_layers)
        )

    @property
    def chooses(self) -> bool:
        """Whether any part chooses among the tokens of a batch in training."""
        return "experts" in self.channels or any(self.depths)

    @property
    def has_memory(self) -> bool:
        """Whether any block reads the memory's table."""
        return any("memory" in channel for channel in self.channels)

    @property
    def by_modality(self) -> bool:
        """Whether any part tells modalities apart, so that tokens are sorted by them."""
        return bool(self.untie) or "experts" in self.channels

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """`hidden_dim`, resolved."""
        return self.hidden_dim or 64 * -(-8 * self.dim // (3 * 64))

    @property
    def mamba_dt_rank(self) -> int:
        """`dt_rank`, resolved."""
        return self.dt_rank or -(-self.dim // 16)

    @property
    def value_dim(self) -> int:
        """`memory_value_dim`, resolved."""
        return self.memory_value_dim or self.dim

    @property
    def key_dim(self) -> int:
        """`memory_key_dim`, resolved."""
        return self.memory_key_dim or self.value_dim // 2

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str = "model") -> Self:
        """Read a TOML or JSON table; an unknown key or a wrong type is a ConfigError."""
        known = {f.name: f.default for f in fields(cls)}
        values: dict[str, object] = {}
        for key, value in table.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(known)}"
                raise ConfigError(f"{where}.{key}: no such key{hint}")
            values[key] = _typed(value, known[key], f"{where}.{key}")
        return cls(**values)  # pyright: ignore[reportArgumentType]

    def _check_numbers(self) -> None:
        may_be_zero = {"hidden_dim", "dt_rank", "memory_key_dim", "memory_value_dim"}
        for field in fields(self):
            value = getattr(self, field.name)
            low = 0 if field.name in may_be_zero else 1
            if type(field.default) is int and (type(value) is not int or value < low):
                raise ConfigError(f"model.{field.name}: {value!r} should be an integer >= {low}")
        for name in ("norm_eps", "rope_theta", "capacity", "depth_capacity"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} should be above 0")
        if self.depth_capacity > 1:
            raise ConfigError(
                f"model.depth_capacity: {self.depth_capacity} should be a share, up to 1"
            )
        for name in ("z_loss", "router_noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} should be 0 or more")

    def _check_choices(self) -> None:
        choices = {"mixers": Mixer, "channels": Channel, "untie": Part}
        for name, literal in choices.items():
            for value in getattr(self, name):
                if value not in get_args(literal):
                    there = ", ".join(get_args(literal))
                    raise ConfigError(f"model.{name}: no {value!r}; there is {there}")
        for name, there in (
            ("norm", ("pre", "post")),
            ("qk_norm", ("none", "rms", "layer")),
            ("expert_choice", ("batch", "row")),
            ("causal_choice", ("threshold", "auxiliary")),
        ):
            if getattr(self, name) not in there:
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {there}")

    def _check_fit(self) -> None:
        for name in ("mixers", "channels"):
            if not 1 <= len(getattr(self, name)) <= self.n_layers:
                raise ConfigError(
                    f"model.{name}: a pattern of {len(getattr(self, name))} for "
                    f"n_layers = {self.n_layers}; give between 1 and n_layers names"
                )
        for part in self.untie:
            pattern, needed = _NEEDS.get(part, ("mixers", self.mixers[0]))
            if not any(needed in (mixer, *channel.split("+")) for mixer, channel in self.blocks):
                raise ConfigError(
                    f"model.untie: {part!r} belongs to {needed!r}, which is not in model.{pattern}"
                )
        if len(set(self.untie)) != len(self.untie):
            raise ConfigError(f"model.untie: a part is named twice: {list(self.untie)}")
        if "attention" in self.mixers and (self.dim % self.n_heads or self.head_dim % 2):
            raise ConfigError(
                f"model.n_heads: dim {self.dim} over {self.n_heads} heads should be an even number"
            )
        if "experts" in self.channels and (not self.experts or min(self.experts) < 1):
            raise ConfigError(f"model.experts: {list(self.experts)} should be numbers >= 1")
        if self.has_memory:
            self._check_memory()

    def _check_memory(self) -> None:
        if self.memory_top_k > self.memory_keys:
            raise ConfigError(
                f"model.memory_top_k: {self.memory_top_k} is more than "
                f"memory_keys = {self.memory_keys}"
            )
        if self.key_dim % 2:
            raise ConfigError(f"model.memory_key_dim: {self.key_dim} should be even: two halves")
        if not self.memory_gate and self.value_dim != self.dim:
            raise ConfigError(
                f"model.memory_value_dim: without memory_gate it should be dim = {self.dim}, "
                f"not {self.value_dim}"
            )


def _typed(value: object, default: object, where: str) -> object:
    """The value as the type of the field's default; lists become tuples, integers floats."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        kind = int if default and isinstance(default[0], int) else str
        if all(type(item) is kind for item in value):
            return tuple(value)
        raise ConfigError(f"{where}: {value!r} should be a list of {kind.__name__}")
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        wanted = "list" if isinstance(default, tuple) else type(default).__name__
        raise ConfigError(f"{where}: {value!r} should be of type {wanted}")
    return value
