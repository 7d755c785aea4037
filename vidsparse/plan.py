"""What a method decides for one attention call, as data: token orders and a block mask."""

from dataclasses import dataclass

from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.permute import move_heads, permute_qkv
from vidsparse.kernels.running_statistics import RunningStat


@dataclass(frozen=True)
class AttentionPlan:
    """Token orders and the mask in those orders.

    Attributes:
        mask: which key blocks each query block attends to, in the permuted orders.
        q_order: (B | 1, H | 1, S) int32, natural index of the query at each position; None for
            the natural order.
        kv_order: the same for keys and values.
        moved_heads: (B | 1, H | 1) bool, heads whose order is not the identity; None when every
            head moves. Other heads are not copied where the kernel can follow the orders itself,
            see ``moved``. SVG's head types are read from it.
        stats_lse: (B, H, S) float32 natural log-sum-exp per query in the plan's query order, as of
            an earlier step; asks the kernel for the mass of each kept block against it, which
            ``observe`` finds in ``output.block_stats``. None asks for nothing.
        running: statistic that the kernel takes while attending, which ``observe`` finds in
            ``output.block_stats``; not together with ``stats_lse``, and for equal blocks only.
        compensate: let every skipped block count through its mean key and mean value, as
            ``block_sparse_attention`` does, instead of as nothing.
        tangents: (B, H, Nkv, D) float32, for ``compensate``: for each key block, in the plan's
            order, the query at which compensation is exact; None for 0.
        tokens: q, k and v of this call in the plan's orders, where planning has moved them already;
            None leaves that to whoever runs the plan.
        anchor: also attend densely; that is the call's result, and ``compare`` of the method sees
            both outputs.
        correction: (B, H, S, D) in natural order, added to the output; None for nothing.
        dense_reason: why the mask keeps every block, for plans that only want the kernel's LSE; the
            call then counts as dense for this reason. None for sparse plans.
        error_bound: 0-dim float32, the most that the outputs moved on average for what is skipped,
            in lengths of the longest value vector, as far as the method knows it; else None.
    """

    mask: BlockMask | RaggedBlockMask
    q_order: Tensor | None = None
    kv_order: Tensor | None = None
    moved_heads: Tensor | None = None
    stats_lse: Tensor | None = None
    running: RunningStat | None = None
    compensate: bool = False
    tangents: Tensor | None = None
    tokens: tuple[Tensor, Tensor, Tensor] | None = None
    anchor: bool = False
    correction: Tensor | None = None
    dense_reason: str | None = None
    error_bound: Tensor | None = None

    def in_order(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, (B, H, S, D) in natural order, in the plan's orders."""
        if self.tokens is not None:
            return self.tokens
        return permute_qkv(q, k, v, self.q_order, self.kv_order)

    def moved(self, k: Tensor, v: Tensor) -> MovedHeads | None:
        """Move only heads whose order is not the identity, for a kernel that follows orders itself.

        Args:
            k: (B, H, S, D) keys in natural order.
            v: (B, H, S, D) values.

        Returns:
            What ``block_sparse_attention`` takes beside tokens in natural order; its output is then
            in natural order too, and that is what ``observe`` sees. None where ``in_order`` has to
            copy every head: with compensation, statistics or blocks of varying size.
        """
        if self.moved_heads is None or self.q_order is None or self.kv_order is None:
            return None
        extras = self.compensate or self.stats_lse is not None or self.running is not None
        if extras or self.tokens is not None or isinstance(self.mask, RaggedBlockMask):
            return None
        return move_heads(k, v, self.moved_heads, self.q_order, self.kv_order)

    def density(self) -> Tensor:
        """Return the kept share of query-key pairs, a 0-dim tensor on the mask's device."""
        return self.mask.density()


@dataclass(frozen=True)
class CallSite:
    """Where in a generation an attention call happens.

    Attributes:
        transformer: attribute name in the pipeline, "transformer" or "transformer_2".
        layer: index among the video self-attentions of its transformer, from 0.
        num_layers: how many there are.
        step: denoising step, from 0 per generation.
        num_steps: steps of this generation; None when a bare transformer was not told.
        sigma: noise level in [0, 1] (timestep / 1000); None when unknown.
        branch: forward of this step (0 conditional, 1 unconditional for most pipelines).
        generation: counts generations of this attachment.
        first_sparse_layer: the first layer that may be sparse, as the schedule has it.
    """

    transformer: str
    layer: int
    num_layers: int
    step: int
    num_steps: int | None
    sigma: float | None
    branch: int
    generation: int
    first_sparse_layer: int = 0

    def __str__(self) -> str:
        """Return a short name for messages."""
        return f"{self.transformer} layer {self.layer} step {self.step} branch {self.branch}"
