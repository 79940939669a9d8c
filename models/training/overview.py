"""What a run tells of itself before its first step, and all that `--dry_run` tells."""

from plait.models import flops
from plait.models.decoder import Decoder
from plait.models.training.optimizer import Optimizer
from plait.models.training.run_config import RunConfig


def overview(config: RunConfig, model: Decoder, optimizer: Optimizer, rows: int) -> str:
    """Parameters and FLOPs by modality, memory, and the rows of an epoch."""
    sizes = flops.count_parameters(model)
    per_token = flops.flops_per_token(model, config.rows.seq_len)
    where = model.embedding.device
    lines = [f"{config.preset or 'model'}: {sizes['total']:,} parameters on {where}"]
    for name, active in sizes["active"].items():
        lines.append(f"  {name:<7}{active:>13,} active {per_token[name]:>15,.0f} FLOPs a token")
    lines.append(f"  {16 * sizes['total'] / 2**20:,.0f} MiB of weights and optimizer state")
    step = config.rows.batch_size * config.rows.accumulate
    lines.append(f"  {rows:,} rows of {config.rows.seq_len} an epoch, {step} a step")
    if config.dry_run:
        lines += [f"  {line}" for line in optimizer.describe()]
    return "\n".join(lines)
