"""SIGTERM and Ctrl-C while training: the step is finished and saved; a second Ctrl-C quits at once.

Schedulers send SIGTERM before they take a machine away. With several ranks, `agreed` is true on all
of them after the same step or on none, so that nobody waits for a rank that has stopped.
"""

import os
import signal
import threading
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 (as KeyboardInterrupt, no error)
    """Raised where work is given up that will be done again by the resumed run."""


class Interrupt:
    """Notes signals within its context; in a thread other than the main one it notes none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = ""
        """The signal that came, as SIGTERM; on other ranks it may be empty."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def agreed(self) -> bool:
        """Whether any rank was told to stop; all ranks ask at the same point."""
        if not dist.is_initialized():
            return bool(self.name)
        told = torch.tensor(float(bool(self.name)), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def check(self) -> None:
        """Interrupted, if any rank was told to stop."""
        if self.agreed():
            raise Interrupted

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.name = signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":  # of several ranks, as torchrun names them, one
            text = f"\n{self.name}: stopping after this step and a checkpoint; Ctrl-C quits at once"
            os.write(2, f"{text}\n".encode())  # print would fail if the signal came within a print
