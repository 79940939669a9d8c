"""Loader: batches by number, in one process with one prefetch thread.

Batch s is rows s * batch_size onward, whatever the number of ranks, so the state is one integer.
Worker processes are left out on purpose: handing a batch from one process to another costs more
than making it.
"""

import json
import threading
import time
from collections.abc import Callable, Generator
from queue import Empty, Queue
from typing import Generic, TypedDict, TypeVar, overload

from plait.pipeline.batch import Batch
from plait.pipeline.rows import Rows
from plait.tokenizers.errors import ConfigError, ResumeError

Item = TypeVar("Item")


class LoaderState(TypedDict):
    """What `state_dict` gives."""

    step: int
    fingerprint: str


class Loader(Generic[Item]):
    """Iterates batches for ever, from its step on.

    `batch_size` counts the rows of all ranks; it should be a multiple of `world_size`, and each
    rank gets its slice of every batch. `prepare` is called on each batch in the prefetch thread,
    and its result comes in place of the batch.
    """

    @overload
    def __init__(
        self: "Loader[Batch]",
        rows: Rows,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prepare: None = None,
        prefetch: int = 2,
    ) -> None: ...

    @overload
    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prepare: Callable[[Batch], Item],
        prefetch: int = 2,
    ) -> None: ...

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prepare: Callable[[Batch], Item] | None = None,
        prefetch: int = 2,
    ) -> None:
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"batch_size {batch_size} counts the rows of all ranks; it should be a multiple of "
                f"the world size {world_size}"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size}")
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.step = 0
        self.wait_s = 0.0
        self._prepare = prepare
        self._prefetch = prefetch

    def batch(self, step: int) -> Batch:
        """This rank's part of batch number `step`."""
        each = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * each
        return self.rows.batch(range(first, first + each), step)

    def __iter__(self) -> Generator[Item, None, None]:
        if self._prefetch < 1:
            while True:
                began = time.monotonic()
                item = self._make(self.step)
                self.wait_s += time.monotonic() - began
                self.step += 1
                yield item
        thread = _Prefetch(self._make, self.step, self._prefetch)
        try:
            while True:
                began = time.monotonic()
                item = thread.get()
                self.wait_s += time.monotonic() - began
                self.step += 1
                yield item
        finally:
            thread.stop()

    def state_dict(self) -> LoaderState:
        """The number of the next batch, and what the order depends on."""
        return {"step": self.step, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: LoaderState) -> None:
        """Go on at a saved step; ResumeError names what differs from then."""
        try:
            was = json.loads(state["fingerprint"])
            step = int(state["step"])
            fields = {**was}
        except (KeyError, TypeError, ValueError) as error:
            raise ResumeError(f"this is no state of a loader: {error!r}") from None
        now = json.loads(self._fingerprint())
        differing = [
            f"{k} was {fields.get(k)!r}, is {v!r}" for k, v in now.items() if fields.get(k) != v
        ]
        if differing:
            raise ResumeError("the saved state belongs to other rows: " + "; ".join(differing))
        self.step = step

    def _fingerprint(self) -> str:
        return json.dumps({**json.loads(self.rows.fingerprint), "batch_size": self.batch_size})

    def _make(self, step: int) -> Item:
        batch = self.batch(step)
        return batch if self._prepare is None else self._prepare(batch)  # type: ignore[return-value]


class _Prefetch(Generic[Item]):
    """A thread that makes items ahead; an error in it is raised by `get`."""

    def __init__(self, make: Callable[[int], Item], step: int, depth: int) -> None:
        self._make = make
        self._queue: Queue[tuple[Item | None, BaseException | None]] = Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(step,), daemon=True)
        self._thread.start()

    def get(self) -> Item:
        item, error = self._queue.get()
        if error is not None:
            raise error
        assert item is not None
        return item

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except Empty:
                continue

    def _run(self, step: int) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put((self._make(step), None))
            except BaseException as error:
                self._queue.put((None, error))
                return
            step += 1
