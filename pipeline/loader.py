"""Loader: batches by number, in one process with one prefetch thread.

Batch s is rows s * batch_size onward, whatever the number of ranks, so the state is one integer.
Worker processes are left out on purpose: handing a batch from one process to another costs more
than making it.
"""

import json
import threading
import time
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Generic, TypedDict, TypeVar, overload

from plait.pipeline.batch import Batch
from plait.pipeline.rows import Rows
from plait.tokenizers.errors import ConfigError, ResumeError

Item = TypeVar("Item")
LONG_S = 1e-3
"""A made item waits at most so long for the rest of its group."""


class LoaderState(TypedDict):
    """What `state_dict` gives."""

    step: int
    fingerprint: str


class Loader(Generic[Item]):
    """Iterates batches from its step on: for ever, unless rows stop where a stream is exhausted.

    `batch_size` counts the rows of all ranks; it should be a multiple of `world_size`, and each
    rank gets its slice of every batch. `prepare` is called on each batch in the prefetch thread,
    and its result comes in place of the batch. At most `prefetch` lie ready.
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
        prefetch: int = 8,
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
        prefetch: int = 8,
    ) -> None: ...

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prepare: Callable[[Batch], Item] | None = None,
        prefetch: int = 8,
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

    @property
    def steps(self) -> int | None:
        """The whole batches that there are; None where rows go on for ever."""
        end = self.rows.end if self.rows.exhausted == "stop" else None
        return None if end is None else end // self.batch_size

    @property
    def epochs(self) -> list[float]:
        """How often each stream has been through before the next batch."""
        return self.rows.epochs(self.step * self.batch_size)

    def __iter__(self) -> Generator[Item, None, None]:
        last = self.steps
        if self._prefetch < 1:
            while last is None or self.step < last:
                began = time.monotonic()
                item = self._make(self.step)
                self.wait_s += time.monotonic() - began
                self.step += 1
                yield item
            return
        thread = _Prefetch(self._make, self.step, self._prefetch)
        try:
            while last is None or self.step < last:
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

    def load_state_dict(self, state: LoaderState, *, new_weights: bool = False) -> None:
        """Go on at a saved step; ResumeError names what differs from then.

        With `new_weights` the weights may differ: these rows' own hold from the saved step on, and
        each stream goes on with the row that it had reached.
        """
        try:
            was = json.loads(state["fingerprint"])
            step = int(state["step"])
            fields = {**was}
        except (KeyError, TypeError, ValueError) as error:
            raise ResumeError(f"this is no state of a loader: {error!r}") from None
        now = json.loads(self._fingerprint())
        if new_weights and now.keys() <= fields.keys():
            now["weights"] = fields["weights"]
        differing = [
            f"{k} was {fields.get(k)!r}, is {v!r}" for k, v in now.items() if fields.get(k) != v
        ]
        if differing:
            raise ResumeError("the saved state belongs to other rows: " + "; ".join(differing))
        if new_weights:
            self.rows.continue_from(state["fingerprint"], step * self.batch_size)
        self.step = step

    def _fingerprint(self) -> str:
        return json.dumps({**json.loads(self.rows.fingerprint), "batch_size": self.batch_size})

    def _make(self, step: int) -> Item:
        batch = self.batch(step)
        return batch if self._prepare is None else self._prepare(batch)  # type: ignore[return-value]


class _Prefetch(Generic[Item]):
    """A thread that makes items ahead; an error in it is raised by `get`.

    To wake the other thread costs as much as to make half a batch. Items are therefore handed over
    by the group, half of what may lie ready, and so is the leave to make more; an item that took
    long is handed over at once, with those before it.
    """

    def __init__(self, make: Callable[[int], Item], step: int, depth: int) -> None:
        self._make = make
        self._depth = depth
        self._groups: SimpleQueue[list[Item] | BaseException] = SimpleQueue()
        self._leave: SimpleQueue[int] = SimpleQueue()
        self._leave.put(depth)
        self._ready: list[Item] = []
        """What is left of the group that came last, the next item at the end."""
        self._taken = 0
        """Items of that group."""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(step,), daemon=True)
        self._thread.start()

    def get(self) -> Item:
        if not self._ready:
            group = self._groups.get()
            if isinstance(group, BaseException):
                raise group
            self._ready, self._taken = group[::-1], len(group)
        item = self._ready.pop()
        if not self._ready:
            self._leave.put(self._taken)
        return item

    def stop(self) -> None:
        self._stopped = True
        self._leave.put(0)
        self._thread.join()

    def _run(self, step: int) -> None:
        group: list[Item] = []
        left, handed = 0, time.monotonic()
        while not self._stopped:
            left = left or self._leave.get()
            if self._stopped:
                return
            try:
                group.append(self._make(step))
            except BaseException as error:
                if group:
                    self._groups.put(group)
                self._groups.put(error)
                return
            step, left = step + 1, left - 1
            if 2 * len(group) >= self._depth or time.monotonic() - handed > LONG_S:
                self._groups.put(group)
                group, handed = [], time.monotonic()
