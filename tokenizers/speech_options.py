"""The options of `plait fit speech`."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from plait.tokenizers.early_stop import check_patience
from plait.tokenizers.errors import ConfigError

MAX_BLOCK, MAX_BEAM = 1024, 64
Method = Literal["mdct", "conv", "units"]
PresetName = Literal["tiny", "small", "base"]


class Preset(NamedTuple):
    """Size of a codec's encoder, and of its decoder."""

    dim: int
    n_blocks: int


PRESETS: dict[str, Preset] = {
    "tiny": Preset(32, 1),
    "small": Preset(192, 3),
    "base": Preset(384, 6),
}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fitting a speech tokenizer."""

    method: Method = "mdct"
    """`mdct`: a codec, whose codes give the sound back; `conv`: the same between two causal
    convolutional networks, trained by gradient; `units`: what is said, not how."""
    sample_rate_hz: int = 16_000
    """Rate that every sound is brought to."""
    codebooks: int = 8
    """codecs: codes a frame."""
    codebook_size: int = 1024
    """codecs: codes in each codebook."""
    hop: int = 320
    """codecs: samples a frame."""
    companding: float = 0.85
    """codecs: coefficients are coded as this power; lower favours high tones."""
    loudness_companding: float = 0.7
    """codecs: then each frame's norm as this power; lower favours quiet frames and recordings."""
    shifts: int = 4
    """codecs: times that each sound is fitted on, each time cut into frames at another place; 4
    gain 1 dB over 1 on a quarter of an hour of speech, at four times the cost."""
    beam: int = 1
    """codecs: chains of codes that encoding keeps at each level; 4 gain 0.45 dB over 1, at a tenth
    of its speed."""
    block: int = 1
    """codecs: frames whose codes are ordered level by level; 1 orders codes frame by frame."""
    preset: PresetName = "small"
    """conv: size of both networks."""
    steps: int = 1000
    """conv: training steps, each on 16 crops."""
    crop_s: float = 1.0
    """conv: seconds of a crop."""
    waveform: float = 1.0
    """conv: weight of the samples' error, relative to the sound."""
    spectral: float = 0.2
    """conv: weight of the distance of log-mel spectra, at four resolutions."""
    patience: int = 0
    """conv: end after this many looks (of 50) at sounds set aside without a better one; 0 never."""
    threads: int = 2
    """conv: threads of a fit, whatever the machine has: the weights' last bits depend on it."""
    units: int = 500
    """units: how many there are."""
    unit_rate_hz: Literal[25, 50] = 25
    """units: frames a second, before runs are merged."""
    model: str = ""
    """units: folder of a HuBERT, wav2vec 2.0 or WavLM model; without, units are of cepstra."""
    layer: int = 9
    """units: the model's layer that is read, from 1; 0 is what goes into the first."""
    stream: bool = False
    """units: learn from all the sound, batch by batch in bounded memory, in its order."""
    max_minutes: float = 30.0
    """Most sound to fit on, but for `stream`; beyond that, a random choice."""

    def __post_init__(self) -> None:
        _check_range("codebooks", self.codebooks, 1, 64)
        _check_range("codebook_size", self.codebook_size, 2, 65_536)
        _check_range("hop", self.hop, 16, 4096)
        _check_range("shifts", self.shifts, 1, 64)
        _check_range("block", self.block, 1, MAX_BLOCK)
        _check_range("beam", self.beam, 1, MAX_BEAM)
        _check_range("companding", self.companding, 0.1, 1)
        _check_range("loudness_companding", self.loudness_companding, 0.1, 1)
        _check_range("units", self.units, 2, 65_536)
        _check_range("sample_rate_hz", self.sample_rate_hz, 8_000, 48_000)
        _check_range("max_minutes", self.max_minutes, 0.01, 100_000)
        _check_range("steps", self.steps, 0, 10**9)
        _check_range("crop_s", self.crop_s, 0.1, 60)
        _check_range("waveform", self.waveform, 0, 1e6)
        _check_range("spectral", self.spectral, 0, 1e6)
        _check_range("threads", self.threads, 1, 1024)
        check_patience(self.patience)
        for name, known in [("method", Method), ("preset", PresetName)]:
            if getattr(self, name) not in get_args(known):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; there is {', '.join(get_args(known))}"
                )
        if self.method == "conv" and not self.waveform + self.spectral:
            raise ConfigError("waveform and spectral are both 0: there is nothing to train for")
        if self.method != "conv" and self.patience:
            raise ConfigError("patience is for method = conv; the others do not train by gradient")
        if self.method != "units" and (self.model or self.stream):
            raise ConfigError("model and stream are for method = units")
        if self.sample_rate_hz % 100:
            raise ConfigError(f"sample_rate_hz is {self.sample_rate_hz}: not a multiple of 100")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, and should be in {low}..{high}")
