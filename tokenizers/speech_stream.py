"""The codecs piece by piece: sound to codes and codes to sound, as they come.

A frame of `hop` samples more of sound is heard after two frames of codes, and its codes are known
after one hop more of sound: a look-ahead of one frame either way, 20 ms by default. Whatever the
pieces, what comes out is what the whole sound would have given: the same ids, and the same samples.

T frames, H hop, W = 2H.
"""

import numpy as np
import torch
from torch import Tensor

from plait.tokenizers.base import Encoded, Waveform
from plait.tokenizers.checks import checked_ids
from plait.tokenizers.errors import SampleError
from plait.tokenizers.mdct import forward, inverse
from plait.tokenizers.sound import prepare
from plait.tokenizers.speech import MDCT


class StreamDecoder:
    """Ids as they are generated, to sound; one object a sound.

    >>> decoder = StreamDecoder(codec)  # doctest: +SKIP
    >>> while ids := more():  # doctest: +SKIP
    ...     play(decoder.push(ids))
    """

    def __init__(self, tokenizer: MDCT) -> None:
        self.tokenizer = tokenizer
        self._coefficients = tokenizer.decoding()
        self._waiting = torch.zeros(0, dtype=torch.int64)
        self._tail_H: Tensor | None = None
        self._frames = 0

    def push(self, ids: np.ndarray) -> np.ndarray:
        """Take the next ids, any number; float32 samples, `hop` for each frame after the first.

        Ids of an unfinished frame (or block of frames, by the codec's layout) wait for the rest of
        it. SampleError if an id is outside the vocabulary; the decoder is then as it was before.
        """
        taken = checked_ids(Encoded(ids=ids), self.tokenizer.vocab_size)
        waiting = torch.cat([self._waiting, taken])
        whole = len(waiting) - len(waiting) % self.tokenizer.width
        self._waiting = waiting[whole:]
        if not whole:
            return np.zeros(0, np.float32)
        windows_TW = inverse(self._coefficients(waiting[:whole]), self._frames)
        return self._overlap(windows_TW)

    def _overlap(self, windows_TW: Tensor) -> np.ndarray:
        hop = self.tokenizer.hop
        first = self._tail_H is None
        tail_H = torch.zeros(hop) if self._tail_H is None else self._tail_H
        late_TH = torch.cat([tail_H[None], windows_TW[:-1, hop:]])
        self._tail_H = windows_TW[-1, hop:]
        self._frames += len(windows_TW)
        samples = (late_TH + windows_TW[:, :hop]).flatten()[hop if first else 0 :]
        return samples.clamp(-1, 1).numpy()


class StreamEncoder:
    """Sound as it is recorded, to ids; one object a sound. The rate must be the codec's own."""

    def __init__(self, tokenizer: MDCT) -> None:
        self.tokenizer = tokenizer
        self._encode = tokenizer.encoding()
        self._waiting = torch.zeros(tokenizer.hop)
        self._frames_waiting = torch.zeros(0, len(tokenizer.bins_D))
        self._frames = 0
        self._begun = False

    def push(self, sound: Waveform) -> np.ndarray:
        """Take the next samples, any number but 0; int32 ids of the frames they complete.

        SampleError as in `MDCT.encode_batch`, or if the rate is not the codec's.
        """
        if sound.sample_rate_hz != self.tokenizer.sample_rate_hz:
            raise SampleError(
                f"the sound is at {sound.sample_rate_hz} Hz and the codec at "
                f"{self.tokenizer.sample_rate_hz} Hz: resample it whole, or fit a codec at its rate"
            )
        samples = prepare(sound, self.tokenizer.sample_rate_hz)
        self._waiting = torch.cat([self._waiting, samples])
        self._begun = True
        return self._ids(self._complete())

    def finish(self) -> np.ndarray:
        """The ids of the last frames, once the sound has ended; SampleError if it was empty."""
        if not self._begun:
            raise SampleError("the sound is empty")
        hop = self.tokenizer.hop
        missing = -len(self._waiting) % hop + hop
        self._waiting = torch.cat([self._waiting, torch.zeros(missing)])
        frames_TD = self._complete()
        return self._ids(frames_TD, last=True)

    def _complete(self) -> Tensor:
        """What is quantized, [T, D], of the windows that are whole; their last half is kept."""
        hop = self.tokenizer.hop
        count = len(self._waiting) // hop - 1
        if count < 1:
            return self._frames_waiting[:0]
        windows_TW = self._waiting[: (count + 1) * hop].unfold(0, 2 * hop, hop)
        frames_TD = self._encode(forward(windows_TW, self._frames))
        self._waiting = self._waiting[count * hop :]
        self._frames += count
        return frames_TD

    def _ids(self, frames_TD: Tensor, *, last: bool = False) -> np.ndarray:
        waiting = torch.cat([self._frames_waiting, frames_TD])
        whole = len(waiting) if last else len(waiting) - len(waiting) % self.tokenizer.block
        self._frames_waiting = waiting[whole:]
        return self.tokenizer.ids([waiting[:whole]])[0] if whole else np.zeros(0, np.int32)
