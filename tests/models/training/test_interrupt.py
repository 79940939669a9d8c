import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from plait.models.training.interrupt import Interrupt, Interrupted

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number, capfd):
    before = signal.getsignal(number)
    with Interrupt(CPU) as interrupt:
        interrupt.check()
        os.kill(os.getpid(), number)
        assert interrupt.agreed()
        with pytest.raises(Interrupted):
            interrupt.check()
        if number == signal.SIGTERM:  # a scheduler may say it twice
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert signal.Signals(number).name in capfd.readouterr().err


def test_a_second_ctrl_c_quits_at_once():
    script = (
        "import os, signal, time, torch; from plait.models.training.interrupt import Interrupt\n"
        "with Interrupt(torch.device('cpu')):\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60); print('still there')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "goes on\n")


def test_in_another_thread_nothing_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def use() -> None:
        with Interrupt(CPU) as interrupt:
            found.append((interrupt.agreed(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def child(rank: int, path: Path) -> None:
    """Rank 1 alone is told to stop, in its third step."""
    store = dist.FileStore(str(path / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    with Interrupt(CPU) as interrupt:
        for step in range(100):
            if interrupt.agreed():
                break
            if (rank, step) == (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
    dist.barrier()
    (path / f"stopped-{rank}").write_text(str(step))
    gc.collect()
    dist.destroy_process_group()


def test_all_ranks_stop_after_the_same_step(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed"])
    found = [context.Process(target=child, args=(rank, tmp_path)) for rank in range(2)]
    for process in found:
        process.start()
    for process in found:
        process.join(timeout=120)
    assert [process.exitcode for process in found] == [0, 0]
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == ["3", "3"]
