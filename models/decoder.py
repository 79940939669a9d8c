"""The one decoder: embed, blocks, norm, head; every family of models is a configuration of it.

The residual stream is one flat tensor [N, D] of all rows, sorted by modality for the whole stack
if any part tells modalities apart; only attention and the scan see the original order. Input and
output embeddings are separate (arXiv:2405.09818). Two things are ours, and let a modality that is
rare be learned in its few tokens: both embeddings of a token are the sum of its own and of its
modality's, and logits start from the stream's token frequencies (`set_prior`).
The head runs only at positions with a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.cross_entropy import linear_cross_entropy
from plait.models.block import Block, BlockCache
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import ModalityNorm, rotation, truncated_normal
from plait.models.losses import Losses, summed
from plait.models.plan import Order, Plan, prompt_batch
from plait.models.ranks import ALONE
from plait.models.recompute import run_again
from plait.models.values import ValueTable
from plait.pipeline.batch import Batch
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError

VALUES = "values.weight"
"""Name of the memory's table among the parameters."""


@dataclass(eq=False)
class Cache:
    """State of stepwise inference: each row is at its own position of one document."""

    mixers: list[BlockCache]
    length_B: Tensor
    """Tokens that each row took in, int64."""
    seen_BS: Tensor | None = None
    """Which cached keys are a row's own, bool; None for all, as if no prompt was padded."""

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows, int64 numbers which may repeat; the others are dropped."""
        self.length_B = self.length_B[rows_B]
        self.seen_BS = None if self.seen_BS is None else self.seen_BS[rows_B]
        for mixer in self.mixers:
            mixer.keep(rows_B)


class Decoder(nn.Module):
    """A causal model of batches; seed torch's global generator before making one."""

    prior_V: Tensor
    modality_V: Tensor

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        values_group: dist.ProcessGroup | None = None,
    ) -> None:
        """`values_group` are the ranks among which the memory's values are cut by columns."""
        super().__init__()
        self.config, self.vocabulary, self.ranks = config, vocabulary, ALONE
        modalities = len(vocabulary.modalities)
        sublayers = sum(1 + (channel != "none") for _, channel in config.blocks)
        gain = 1.0 if config.norm == "post" else sublayers**-0.5
        self.embedding = nn.Parameter(torch.empty(vocabulary.size, config.dim))
        self.modality_embedding = nn.Parameter(torch.empty(modalities, config.dim))
        self.register_buffer("prior_V", torch.zeros(vocabulary.size))
        table_V = torch.from_numpy(vocabulary.modality_table.astype("int64"))
        self.register_buffer("modality_V", table_V, persistent=False)
        self.blocks = nn.ModuleList(
            Block(config, *parts, modalities, gain, depth)
            for parts, depth in zip(config.blocks, config.depths, strict=True)
        )
        self.norm = ModalityNorm(config.dim, 1, config.norm_eps)
        self.head = nn.Parameter(torch.empty(vocabulary.size, config.dim))
        self.modality_head = nn.Parameter(torch.empty(modalities, config.dim))
        self.checkpoint_activations = False
        self.values = None
        if config.has_memory:
            self.values = ValueTable(config.memory_keys**2, config.value_dim, values_group)
        self.initialise()

    def initialise(self) -> None:
        """Draw every parameter anew, in a fixed order, from torch's global generator."""
        std = 1.0 if self.config.norm == "post" else 0.3
        truncated_normal(self.embedding, std)
        truncated_normal(self.modality_embedding, std)
        truncated_normal(self.head, 0.02)
        nn.init.zeros_(self.modality_head)
        nn.init.zeros_(self.prior_V)
        if self.values is not None:
            self.values.reset_parameters()
        for module in (*self.blocks.modules(), self.norm):
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def set_prior(self, counts_V: Tensor) -> None:
        """Begin at the unigram distribution: fixed log-frequencies are added to the logits.

        What the weights learn is then what the context says; else rare modalities spend their few
        tokens on learning which ids there are.
        """
        share_V = (counts_V.double() + 1) / (counts_V.double() + 1).sum()
        self.prior_V.copy_(share_V.log())

    def forward(self, batch: Batch, plan: Plan | None = None) -> Tensor:
        """Logits [B, T, V] of what follows each position."""
        x_ND, context = self._trunk(batch, plan or Plan.of(batch))
        logits_NV = F.linear(context.order.unsort(x_ND), self._head(), self.prior_V)
        return logits_NV.view(*batch.tokens_BT.shape, -1)

    def loss(self, batch: Batch, plan: Plan | None = None, *, leaking: bool = False) -> Losses:
        """Cross-entropy at the positions of `loss_mask_BT`, by the modality of the target.

        `leaking` lets experts choose among all tokens in eval too: the figure that papers print,
        where a token's experts tell of what comes after it.
        """
        plan = plan or Plan.of(batch)
        x_ND, context = self._trunk(batch, plan, leaking)
        x_JD = x_ND.index_select(0, context.order.rows(plan.target_rows_J))
        head = (self._head(), self.prior_V, plan.targets_J, self.config.z_loss)
        loss_J, partition_J = linear_cross_entropy(x_JD, *head)
        if self.config.z_loss:
            context.note("z_loss", partition_J.square().sum(), len(partition_J))
        return summed(loss_J, plan.target_counts, context)

    @torch.no_grad()
    def nats(self, batch: Batch) -> Tensor:
        """Cross-entropy of each position's target, float32 [B, T]; 0 where it has none."""
        plan = Plan.of(batch)
        x_ND, context = self._trunk(batch, plan)
        x_JD = x_ND.index_select(0, context.order.rows(plan.target_rows_J))
        loss_J, _ = linear_cross_entropy(x_JD, self._head(), self.prior_V, plan.targets_J)
        nats_N = loss_J.new_zeros(batch.tokens_BT.numel())
        return nats_N.index_copy(0, plan.target_rows_J, loss_J).view(batch.tokens_BT.shape)

    def start(self, batch_size: int) -> Cache:
        """State before the first token of `batch_size` documents."""
        device = self.embedding.device
        mixers = [block.start(batch_size, device) for block in self._blocks]
        return Cache(mixers, torch.zeros(batch_size, dtype=torch.int64, device=device))

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Cache]:
        """Take in whole prompts, a row each, in one pass: what `logits` reads [B, D], and a cache.

        Equals `start` and as many steps. ValueError where a prompt is empty or has no such id.
        """
        batch = prompt_batch(prompts, self.vocabulary).to(self.embedding.device)
        cache = self.start(len(prompts))
        x_ND, context = self._trunk(batch, Plan.of(batch), cache=cache)
        cache.length_B = (~batch.padding_BT).sum(1)
        cache.seen_BS = ~batch.padding_BT if batch.padding_BT.any() else None
        first_B = torch.arange(len(prompts), device=x_ND.device) * batch.tokens_BT.shape[1]
        return x_ND[context.order.rows(first_B + cache.length_B - 1)], cache

    @torch.no_grad()
    def step(self, tokens_B: Tensor, cache: Cache) -> Tensor:
        """Take in one token a row; logits [B, V] of what follows. Equals the whole pass in eval."""
        return self.logits(self.advance(tokens_B, cache))

    @torch.no_grad()
    def advance(self, tokens_B: Tensor, cache: Cache) -> Tensor:
        """Take in one token a row; what `logits` reads, [B, D]."""
        if tokens_B.shape != cache.length_B.shape:
            rows = len(cache.length_B)
            raise ValueError(f"{tuple(tokens_B.shape)} tokens; the cache is of {rows} rows")
        modalities = len(self.vocabulary.modalities)
        order = Order.of_step(self.modality_V[tokens_B].tolist(), modalities)
        order = (order if self.config.by_modality else order.unsorted()).to(tokens_B.device)
        if cache.seen_BS is not None:
            cache.seen_BS = F.pad(cache.seen_BS, (0, 1), value=True)
        context = Context(
            order=order,
            turn=self._turn(cache.length_B[:, None]),
            seen_BS=cache.seen_BS,
            values=self.values,
        )
        x_BD = self._embed(order.sort(tokens_B))
        for block, state in zip(self._blocks, cache.mixers, strict=True):
            x_BD = block.step(x_BD, context, state)
        cache.length_B = cache.length_B + 1
        return order.unsort(self.norm(x_BD, order))

    @torch.no_grad()
    def logits(self, x_BD: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits of a range of ids, [B, ids], from what `prefill` and `advance` give.

        As `_head`, but for a few rows the sum is cheaper in the logits than in the weights.
        """
        logits_BV = F.linear(x_BD, self.head[ids], self.prior_V[ids])
        return logits_BV + F.linear(x_BD, self.modality_head)[:, self.modality_V[ids]]

    def parameter_kinds(self) -> dict[str, Literal["decay", "no_decay", "values"]]:
        """What an optimizer does with each parameter; "values" is the memory's table."""
        kinds: dict[str, Literal["decay", "no_decay", "values"]] = {}
        for prefix, module in self.named_modules():
            exempt = getattr(module, "no_decay", ())
            for name, _ in module.named_parameters(recurse=False):
                kind = "no_decay" if name in exempt else "decay"
                kinds[f"{prefix}.{name}" if prefix else name] = kind
        return {name: "values" if name == VALUES else kind for name, kind in kinds.items()}

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _trunk(
        self, batch: Batch, plan: Plan, leaking: bool = False, cache: Cache | None = None
    ) -> tuple[Tensor, Context]:
        """The normalised residual stream [N, D], sorted, and how it is sorted."""
        if batch.modalities != self.vocabulary.modalities:
            raise ConfigError(
                f"the batch's modalities are {batch.modalities}, "
                f"the model's are {self.vocabulary.modalities}"
            )
        order = plan.order if self.config.by_modality else plan.order.unsorted()
        context = Context(
            order=order,
            turn=self._turn(order.sort(plan.position_BT.flatten()).view_as(plan.position_BT)),
            layout=plan.sorted_layout if self.config.by_modality else plan.layout,
            document_BT=plan.document_BT,
            reset_BT=plan.reset_BT,
            values=self.values,
            leaking=leaking,
            ranks=self.ranks,
        )
        x_ND = self._embed(order.sort(batch.tokens_BT.flatten()))
        states = [None] * len(self.blocks) if cache is None else cache.mixers
        for number, (block, state) in enumerate(zip(self.blocks, states, strict=True)):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_ND = run_again(block, x_ND, context)
            else:
                x_ND = block(x_ND, context, state)
            context.note_rms(f"rms/block_{number}", x_ND)
        context.note_rms("rms/output", x_ND)
        return self.norm(x_ND, order), context

    def _embed(self, tokens_N: Tensor) -> Tensor:
        own_ND = F.embedding(tokens_N, self.embedding)
        return own_ND + F.embedding(self.modality_V[tokens_N], self.modality_embedding)

    def _head(self) -> Tensor:
        return self.head + F.embedding(self.modality_V, self.modality_head)

    def _turn(self, position_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        if "attention" not in self.config.mixers:
            return None
        return rotation(position_BT, self.config.head_dim, self.config.rope_theta)
