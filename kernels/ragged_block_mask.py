"""Block masks with variable block boundaries, as clusters of tokens give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native


@dataclass(frozen=True)
class RaggedBlockMask:
    """Which key blocks each query block attends to, for blocks of any size, per head.

    A query token of block i attends to the keys of every block j with ``mask[..., i, j]``.
    Blocks are ranges of the *permuted* token order; empty blocks are allowed. All leading
    dimensions may be 1 and are then shared by all batch rows or heads.

    Args:
        q_offsets: (B, H, Nq + 1) int32, first token of each query block; starts at 0, ascends,
            ends at ``seq_q``.
        kv_offsets: (B, H, Nkv + 1) int32, the same for keys.
        mask: (B, H, Nq, Nkv) bool, True where the block is kept.
        seq_q: number of query tokens.
        seq_kv: number of key tokens.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
    """

    q_offsets: Tensor
    kv_offsets: Tensor
    mask: Tensor
    seq_q: int
    seq_kv: int

    def __post_init__(self) -> None:
        reasons = _shape_reasons(self)
        if reasons:
            raise ValueError("invalid RaggedBlockMask: " + "; ".join(reasons))

    @staticmethod
    def from_sizes(
        mask: Tensor, q_sizes: Tensor, kv_sizes: Tensor, *, seq_q: int, seq_kv: int
    ) -> RaggedBlockMask:
        """Build from block sizes instead of offsets, without a host synchronisation.

        Args:
            mask: (B, H, Nq, Nkv) bool.
            q_sizes: (B, H, Nq) integer tokens per query block, summing to ``seq_q``.
            kv_sizes: (B, H, Nkv) integer tokens per key block, summing to ``seq_kv``.
            seq_q: number of query tokens.
            seq_kv: number of key tokens.
        """
        q_offsets, kv_offsets = offsets_from_sizes(q_sizes), offsets_from_sizes(kv_sizes)
        return RaggedBlockMask(q_offsets, kv_offsets, mask, seq_q, seq_kv)

    @property
    def num_q_blocks(self) -> int:
        """Number of query blocks Nq."""
        return self.mask.shape[2]

    @property
    def num_kv_blocks(self) -> int:
        """Number of key blocks Nkv."""
        return self.mask.shape[3]

    @property
    def device(self) -> torch.device:
        """Device of the mask."""
        return self.mask.device

    def to_dense(self) -> Tensor:
        """Return the (B, H, Nq, Nkv) bool mask."""
        return self.mask

    def density(self) -> Tensor:
        """Return kept token pairs over all token pairs, in [0, 1], as a 0-dim device tensor."""
        if triton_is_native(self.device):
            from vidsparse.kernels.triton_kept_pairs import kept_pairs_triton

            pairs, heads = kept_pairs_triton(self)
            return pairs / (heads * self.seq_q * self.seq_kv)
        rows = self.q_offsets.diff().double()
        columns = self.kv_offsets.diff().double()
        kept = (self.mask.double() @ columns.unsqueeze(-1)).squeeze(-1)  # (B, H, Nq)
        per_head = (rows * kept).sum(-1) / (self.seq_q * self.seq_kv)
        return per_head.mean().float()

    def token_mask(self) -> Tensor:
        """Return the (B, H, seq_q, seq_kv) bool mask of token pairs: for small tests only."""
        rows = block_of_token(self.q_offsets, self.seq_q)
        columns = block_of_token(self.kv_offsets, self.seq_kv)
        B, H, _, Nkv = self.mask.shape
        wide = self.mask.gather(2, rows.expand(B, H, -1)[..., None].expand(-1, -1, -1, Nkv))
        return wide.gather(3, columns.expand(B, H, -1)[:, :, None].expand(-1, -1, self.seq_q, -1))

    def validate(self) -> None:
        """Check the offsets' values; waits for the device.

        Raises:
            ValueError: offsets do not start at 0, descend, or do not end at the sequence length.
        """
        for name, offsets, seq in (
            ("q_offsets", self.q_offsets, self.seq_q),
            ("kv_offsets", self.kv_offsets, self.seq_kv),
        ):
            covers = (offsets[..., 0] == 0).all() & (offsets[..., -1] == seq).all()
            if not bool(covers & (offsets.diff() >= 0).all()):
                raise ValueError(f"{name} must start at 0, never descend and end at {seq}")


def offsets_from_sizes(sizes: Tensor) -> Tensor:
    """Turn block sizes (..., N) into int32 offsets (..., N + 1) that start at 0."""
    offsets = torch.zeros(
        *sizes.shape[:-1], sizes.shape[-1] + 1, dtype=torch.int32, device=sizes.device
    )
    torch.cumsum(sizes, -1, dtype=torch.int32, out=offsets[..., 1:])
    return offsets


def block_of_token(offsets: Tensor, seq: int) -> Tensor:
    """Return the (..., seq) int64 block id of every token, given (..., N + 1) offsets."""
    tokens = torch.arange(seq, device=offsets.device, dtype=offsets.dtype)
    tokens = tokens.expand(*offsets.shape[:-1], seq).contiguous()
    return torch.searchsorted(offsets[..., 1:].contiguous(), tokens, right=True)


def _shape_reasons(m: RaggedBlockMask) -> list[str]:
    reasons = []
    if m.mask.dtype != torch.bool or m.mask.ndim != 4:
        reasons.append(
            f"mask is {m.mask.dtype} with {m.mask.ndim} dimensions; give (B, H, Nq, Nkv) bool"
        )
        return reasons
    for name, offsets, blocks in (
        ("q_offsets", m.q_offsets, m.mask.shape[2]),
        ("kv_offsets", m.kv_offsets, m.mask.shape[3]),
    ):
        if offsets.dtype != torch.int32:
            reasons.append(f"{name} is {offsets.dtype}; give int32")
        if offsets.ndim != 3 or offsets.shape[-1] != blocks + 1:
            reasons.append(f"{name} has shape {tuple(offsets.shape)}; give (B, H, {blocks + 1})")
        elif any(a not in (1, b) for a, b in zip(offsets.shape[:2], m.mask.shape[:2], strict=True)):
            reasons.append(
                f"{name} leads with {tuple(offsets.shape[:2])}, mask with "
                f"{tuple(m.mask.shape[:2])}; make them equal or 1"
            )
        if offsets.device != m.mask.device:
            reasons.append(f"{name} is on {offsets.device}, mask on {m.mask.device}")
    if m.seq_q < 1 or m.seq_kv < 1:
        reasons.append(f"seq_q={m.seq_q} and seq_kv={m.seq_kv} must be at least 1")
    return reasons
