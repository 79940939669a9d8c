"""Writes a shard job as one Slurm script: an array whose elements are ranks, and a last step.

`bash SCRIPT` submits both; in the array each element runs `plait shard ... --rank R --world W`.
The rank that finishes last assembles the stream; the last step does so if that rank was killed,
or says which tasks are left. Submitting the script again goes on with those.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from plait.tokenizers.errors import ConfigError

MOST_ELEMENTS = 1000
"""Slurm takes 1,001 in an array unless its administrator allows more."""

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=plait-shard
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --output=plait-shard-%A_%a.log
# {tasks} tasks in {world} array elements. Submit with `bash` and this file; words after it are
# given to sbatch (--partition=..., --time=..., --cpus-per-task=...).
set -euo pipefail
cd {folder}
job=({command})
if [[ "${{1-}}" == "--finish" ]]; then
    exec "${{job[@]}}" --finish
elif [[ -n "${{SLURM_ARRAY_TASK_ID-}}" ]]; then
    exec "${{job[@]}}" --workers "${{SLURM_CPUS_PER_TASK:-1}}" \\
        --rank "$SLURM_ARRAY_TASK_ID" --world {world}
fi
array=$(sbatch --parsable "$@" {script})
sbatch --dependency="afterany:${{array%%;*}}" "$@" --array=0 {script} --finish
"""


def write_script(path: Path, argv: Sequence[str], tasks: int, elements: int) -> int:
    """Write the script of the command `plait shard ARGV`; returns the number of elements.

    `elements` 0 is one for each task, at most 1,000: an element does every W-th task.
    """
    world = max(1, min(tasks, elements or MOST_ELEMENTS))
    if elements > MOST_ELEMENTS:
        raise ConfigError(f"--workers {elements}: a Slurm array has at most {MOST_ELEMENTS}")
    again = ["--engine", "local", "--no-restart"]  # the last of an option counts
    command = [sys.executable, "-m", "plait.pipeline.cli", "shard", *argv, *again]
    text = SCRIPT.format(
        last=world - 1,
        world=world,
        tasks=tasks,
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
        script=shlex.quote(str(path.absolute())),
    )
    path.write_text(text)
    path.chmod(0o755)
    return world
