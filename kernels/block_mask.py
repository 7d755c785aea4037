"""Block masks: for every query block, the list of key blocks that it attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.compact_lists import compact_lists
from vidsparse.kernels.ragged_block_mask import RaggedBlockMask

__all__ = ["BlockMask", "RaggedBlockMask"]


@dataclass(frozen=True)
class BlockMask:
    """Which key blocks each query block attends to, for blocks of one size.

    Field names follow FlexAttention. Leading dimensions may be 1 and are then shared by all
    batch rows or heads.

    Args:
        kv_num_blocks: (B, H, Nq) int32, number of kept key blocks.
        kv_indices: (B, H, Nq, Nkv) int32, contiguous; the first ``kv_num_blocks`` entries of a row
            are the kept block ids in ascending order, the rest is ignored.
        block_q: query tokens per block.
        block_kv: key tokens per block.
        seq_q: number of query tokens; the last block may be partial.
        seq_kv: number of key tokens; the last block may be partial.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    block_q: int
    block_kv: int
    seq_q: int
    seq_kv: int

    def __post_init__(self) -> None:
        reasons = _shape_reasons(self)
        if reasons:
            raise ValueError("invalid BlockMask: " + "; ".join(reasons))

    @staticmethod
    def from_dense(
        mask: Tensor, *, block_q: int, block_kv: int, seq_q: int, seq_kv: int
    ) -> BlockMask:
        """Build the lists from a boolean block mask, on its device, without a synchronisation.

        Args:
            mask: (B, H, Nq, Nkv) bool with Nq = ceil(seq_q / block_q), Nkv alike.
            block_q: query tokens per block.
            block_kv: key tokens per block.
            seq_q: number of query tokens.
            seq_kv: number of key tokens.
        """
        if mask.ndim != 4 or mask.dtype != torch.bool:
            raise ValueError(
                f"mask is {mask.dtype} with shape {tuple(mask.shape)}; give (B, H, Nq, Nkv) bool"
            )
        num_blocks, indices = compact_lists(mask)
        return BlockMask(num_blocks, indices, block_q, block_kv, seq_q, seq_kv)

    @staticmethod
    def full(
        *,
        block_q: int,
        block_kv: int,
        seq_q: int,
        seq_kv: int,
        device: torch.device | str | None = None,
    ) -> BlockMask:
        """Keep everything; leading dimensions are 1 and serve any batch and number of heads."""
        Nq, Nkv = -(-seq_q // block_q), -(-seq_kv // block_kv)
        num_blocks = torch.full((1, 1, Nq), Nkv, dtype=torch.int32, device=device)
        row = torch.arange(Nkv, dtype=torch.int32, device=device)
        indices = row.expand(1, 1, Nq, Nkv).contiguous()
        return BlockMask(num_blocks, indices, block_q, block_kv, seq_q, seq_kv)

    @property
    def num_q_blocks(self) -> int:
        """Number of query blocks Nq."""
        return self.kv_indices.shape[2]

    @property
    def num_kv_blocks(self) -> int:
        """Number of key blocks Nkv."""
        return self.kv_indices.shape[3]

    @property
    def device(self) -> torch.device:
        """Device of the lists."""
        return self.kv_indices.device

    def to_dense(self) -> Tensor:
        """Return the (B, H, Nq, Nkv) bool mask; entries out of range are dropped."""
        Nkv = self.num_kv_blocks
        slots = torch.arange(Nkv, device=self.device)
        valid = slots < self.kv_num_blocks[..., None]
        valid &= (self.kv_indices >= 0) & (self.kv_indices < Nkv)
        # Slot Nkv collects what is not a kept block and is cut off again.
        target = torch.where(valid, self.kv_indices, Nkv).long()
        dense = torch.zeros(*target.shape[:-1], Nkv + 1, dtype=torch.bool, device=self.device)
        return dense.scatter_(-1, target, True)[..., :Nkv]

    def density(self) -> Tensor:
        """Return kept token pairs over all token pairs, in [0, 1], as a 0-dim device tensor."""
        if triton_is_native(self.device):
            from vidsparse.kernels.triton_kept_pairs import kept_pairs_triton

            pairs, lists = kept_pairs_triton(self)
            return pairs / (lists * self.seq_q * self.seq_kv)
        rows = block_sizes(self.seq_q, self.block_q, device=self.device)
        kept = (rows * self.keys_per_row().double()).sum()
        heads = self.kv_num_blocks.shape[0] * self.kv_num_blocks.shape[1]
        return (kept / (heads * self.seq_q * self.seq_kv)).float()

    def keys_per_row(self) -> Tensor:
        """Return the (B, H, Nq) int64 number of key tokens that each query block attends to."""
        counts = self.kv_num_blocks.long()
        last = (counts - 1).clamp(min=0, max=self.num_kv_blocks - 1)[..., None]
        has_tail = self.kv_indices.gather(-1, last)[..., 0] == self.num_kv_blocks - 1
        missing = self.num_kv_blocks * self.block_kv - self.seq_kv
        return counts * self.block_kv - missing * (has_tail & (counts > 0))

    def token_mask(self) -> Tensor:
        """Return the (B, H, seq_q, seq_kv) bool mask of token pairs: for small tests only."""
        wide = self.to_dense().repeat_interleave(self.block_q, 2)
        wide = wide.repeat_interleave(self.block_kv, 3)
        return wide[:, :, : self.seq_q, : self.seq_kv]

    def validate(self) -> None:
        """Check the lists' values; waits for the device.

        Raises:
            ValueError: a count or a block id is out of range, or ids do not ascend.
        """
        counts, indices, Nkv = self.kv_num_blocks, self.kv_indices, self.num_kv_blocks
        if bool(((counts < 0) | (counts > Nkv)).any()):
            raise ValueError(f"kv_num_blocks must lie in 0..{Nkv}")
        valid = torch.arange(Nkv, device=self.device) < counts[..., None]
        if bool((valid & ((indices < 0) | (indices >= Nkv))).any()):
            raise ValueError(f"kv_indices must lie in 0..{Nkv - 1}")
        if bool((valid[..., 1:] & (indices.diff() <= 0)).any()):
            raise ValueError("kv_indices must ascend within each row")


def block_sizes(seq: int, block: int, *, device: torch.device | None = None) -> Tensor:
    """Return the (N,) float64 number of tokens in each of the ceil(seq / block) blocks."""
    starts = torch.arange(0, seq, block, device=device, dtype=torch.float64)
    return (seq - starts).clamp(max=block)


def of_head(x: Tensor, b: int, h: int) -> Tensor:
    """Return what a (B | 1, H | 1, ...) tensor holds for one head of one batch row."""
    return x[b % x.shape[0], h % x.shape[1]]


def _shape_reasons(m: BlockMask) -> list[str]:
    reasons = []
    for name, tensor, ndim in (
        ("kv_num_blocks", m.kv_num_blocks, 3),
        ("kv_indices", m.kv_indices, 4),
    ):
        if tensor.dtype != torch.int32:
            reasons.append(f"{name} is {tensor.dtype}; give int32")
        if tensor.ndim != ndim:
            reasons.append(f"{name} has {tensor.ndim} dimensions; give {ndim}")
        if not tensor.is_contiguous():
            reasons.append(f"{name} is not contiguous; call .contiguous()")
    if min(m.block_q, m.block_kv, m.seq_q, m.seq_kv) < 1:
        reasons.append(
            f"block_q={m.block_q}, block_kv={m.block_kv}, seq_q={m.seq_q}, seq_kv={m.seq_kv} "
            "must be at least 1"
        )
    if reasons:
        return reasons
    blocks = (-(-m.seq_q // m.block_q), -(-m.seq_kv // m.block_kv))
    if tuple(m.kv_indices.shape[2:]) != blocks:
        reasons.append(
            f"kv_indices ends with {tuple(m.kv_indices.shape[2:])}; {m.seq_q} x {m.seq_kv} tokens "
            f"in blocks of {m.block_q} x {m.block_kv} need {blocks}"
        )
    if m.kv_num_blocks.shape != m.kv_indices.shape[:3]:
        reasons.append(
            f"kv_num_blocks has shape {tuple(m.kv_num_blocks.shape)}, kv_indices "
            f"{tuple(m.kv_indices.shape)}; the first three dimensions must agree"
        )
    if m.kv_num_blocks.device != m.kv_indices.device:
        reasons.append(
            f"kv_num_blocks is on {m.kv_num_blocks.device}, kv_indices on {m.kv_indices.device}"
        )
    return reasons
