"""Compiles this folder's C files at their first use, into the user's cache.

One file takes about half a second, once: the library's name is a hash of the source, the headers
beside it, the flags, the compiler and the processor. A machine without a working compiler is told
why once, and the caller takes its plain path. `-ffast-math` is never used: with gcc before 13 a
library built so flushes the whole process's denormals to zero, and NaN would no longer spread.
Nothing but `call` imports torch.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("plait.kernels")

FLAGS = ["-O3", "-std=c11", "-shared", "-fPIC", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]
VARIANTS = (["-march=native", "-fopenmp"], ["-march=native"], [])
"""Tried in turn: not every compiler has OpenMP or knows the processor."""
TIMEOUT_S = 60


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `name`.c of this folder; None, logged once, where it cannot be built."""
    source = Path(__file__).with_name(f"{name}.c")
    compiler = _compiler()
    if compiler is None:
        log.warning(
            "%s: no C compiler (cc, gcc or clang) on PATH; plain torch is used", source.name
        )
        return None
    try:
        return _built(source, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or error
        log.warning("%s does not build, plain torch is used: %s", source.name, output)
        return None


def call(name: str, function: str, sizes: Sequence[int], tensors: "Sequence[Tensor]") -> int:
    """A function of `name`.c: the sizes, the number of threads, the tensors' memory."""
    import torch

    compiled = library(name)
    assert compiled is not None
    assert all(x.is_contiguous() and x.device.type == "cpu" for x in tensors)
    numbers = [ctypes.c_int64(size) for size in sizes]
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    return getattr(compiled, function)(*numbers, ctypes.c_int(torch.get_num_threads()), *pointers)


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _built(source: Path, compiler: str) -> ctypes.CDLL:
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = (texts, FLAGS, VARIANTS, compiler, _stamp(compiler), _processor())
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    target = _folder() / f"{source.stem}-{digest}.so"
    if not target.exists():
        _compile(source, compiler, target)
    return ctypes.CDLL(str(target))


def _compile(source: Path, compiler: str, target: Path) -> None:
    """Tries the variants; the library appears under its name only when whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        for last, variant in enumerate(VARIANTS, 1 - len(VARIANTS)):
            command = [compiler, *FLAGS, *variant, str(source), "-o", str(built)]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=not last
            )
            if done.returncode == 0:
                break
        built.replace(target)


def _folder() -> Path:
    """The user's cache; a private temporary folder where that cannot be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "plait" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="plait-kernels-"))


def _stamp(compiler: str) -> tuple[int, int]:
    status = Path(compiler).resolve().stat()
    return status.st_size, status.st_mtime_ns


def _processor() -> str:
    """What -march=native depends on."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    features = {x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(features)])
