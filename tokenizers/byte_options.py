"""How bytes are cut into patches: the options of `plait fit bytes` and of config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from plait.tokenizers.errors import ConfigError

Method = Literal["fixed", "whitespace", "entropy"]
Rule = Literal["global", "monotonic", "both"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Cutting bytes into patches; only entropies are learned."""

    method: Method = "whitespace"
    """`fixed`: a patch every `patch_size` bytes; `whitespace`: after a space or a sign; `entropy`:
    where the next byte is hard to foretell."""
    patch_size: int = 6
    """Bytes in a patch of method `fixed`."""
    max_patch: int = 32
    """Longest patch of methods `whitespace` and `entropy`; 0 for no limit."""
    rule: Rule = "global"
    """Method `entropy`, a patch starts where the entropy is above `threshold` (global), is above
    the one before by more than `rise` (monotonic), or both."""
    mean_patch: float = 4.5
    """Method `entropy`: mean bytes of a patch for which the threshold (or rise) is searched."""
    threshold: float | None = None
    """Bits; not given, it is searched. BLT's 1.3354 nats are 1.9266 bits."""
    rise: float | None = None
    """Bits; not given, it is searched, or 0 with rule `both`."""

    def __post_init__(self) -> None:
        for value, kind in ((self.method, Method), (self.rule, Rule)):
            if value not in get_args(kind):
                name = "method" if kind is Method else "rule"
                raise ConfigError(f"{name} is {value!r}; there is {', '.join(get_args(kind))}")
        if not all(isinstance(size, int) for size in (self.patch_size, self.max_patch)):
            raise ConfigError("patch_size and max_patch must be whole numbers")
        if self.patch_size < 1 or self.max_patch < 0:
            raise ConfigError("patch_size must be 1 or more, and max_patch 0 or more")
        for name in ("threshold", "rise"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and abs(value) <= 8):
                raise ConfigError(f"{name} is {value!r}: should be in -8..8, in bits")

        if self.must_search and not 1 <= self.mean_patch <= (self.max_patch or math.inf):
            raise ConfigError(f"mean_patch is {self.mean_patch}: should be 1 up to max_patch")

    @property
    def searched(self) -> str:
        """The field that is found for the mean patch, if it is not given."""
        return "rise" if self.rule == "monotonic" else "threshold"

    @property
    def must_search(self) -> bool:
        """Whether it is not given."""
        return self.method == "entropy" and getattr(self, self.searched) is None

    @property
    def limits(self) -> tuple[float, float]:
        """Threshold and rise; -inf for the one that the rule leaves out."""
        threshold = -math.inf if self.rule == "monotonic" else self.threshold
        rise = -math.inf if self.rule == "global" else (self.rise or 0.0)
        assert threshold is not None
        return threshold, rise


def options_to_config(options: FitOptions) -> dict[str, object]:
    """The options that a method uses; what stands in config.json."""
    if options.method == "fixed":
        return {"method": "fixed", "patch_size": options.patch_size}
    if options.method == "whitespace":
        return {"method": "whitespace", "max_patch": options.max_patch}
    threshold, rise = options.limits
    limits = {"threshold": threshold, "rise": rise}
    used = {name: value for name, value in limits.items() if math.isfinite(value)}
    return {"method": "entropy", "rule": options.rule, "max_patch": options.max_patch, **used}


def options_from_config(config: Mapping[str, object]) -> FitOptions:
    """The options of a tokenizer; ConfigError if one is unknown or out of range."""
    options = {key: value for key, value in config.items() if key != "kind"}
    try:
        found = FitOptions(**{"mean_patch": 1, **options})  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"byte tokenizer: config.json does not fit: {error}") from None
    if found.must_search:
        raise ConfigError(f"config.json: patches by entropy need a {found.searched}, in bits")
    return found
