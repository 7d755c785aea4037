"""Join the parts of block masses that ``gluon_mass`` leaves behind."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of one part: those of one warp.
PART_ROWS = 16
_COLUMNS = 64


@triton.jit(
    do_not_specialize=[
        "num_q_blocks", "num_kv_blocks", "tiles", "rows", "columns", "parts_per_q", "parts_per_kv"
    ]
)  # fmt: skip
def _join_parts_kernel(
    parts_ptr, mass_ptr, only_ptr, num_q_blocks, num_kv_blocks, tiles, rows, columns,
    parts_per_q, parts_per_kv, SLOTS: tl.constexpr, PAD_ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ONLY: tl.constexpr,
):  # fmt: skip
    """One program adds up COLUMNS blocks of one row of blocks of one head."""
    block, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    # Nested: `and` would load flags that are not there.
    if ONLY:  # noqa: SIM102
        if tl.load(only_ptr + head * num_q_blocks + block) == 0:
            return
    own = tl.arange(0, PAD_ROWS)
    row = block * parts_per_q + own
    valid_row = (own < parts_per_q) & (row < rows)
    # Parts lie by (head, query tile, column, row within the tile).
    row_base = parts_ptr + (head * tiles + row // SLOTS) * columns * SLOTS + row % SLOTS
    kv_block = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for part in range(0, parts_per_kv):
        column = kv_block * parts_per_kv + part
        inside = valid_row[None, :] & (column < columns)[:, None]
        loaded = tl.load(row_base[None, :] + column[:, None] * SLOTS, mask=inside, other=0.0)
        total += tl.sum(loaded, 1)
    target = mass_ptr + (head * num_q_blocks + block) * num_kv_blocks + kv_block
    tl.store(target, total, mask=kv_block < num_kv_blocks)


def join_mass_parts(
    parts: Tensor,
    mass: Tensor,
    *,
    seq_q: int,
    block_q: int,
    parts_per_kv: int,
    only: Tensor | None = None,
) -> None:
    """Write block masses as sums of their parts.

    Args:
        parts: (B, H, query tiles, columns, parts of a tile) contiguous float32; a part covers 16
            query rows. Those past ``seq_q`` are ignored.
        mass: (B, H, Nq, Nkv) float32, contiguous, written to.
        seq_q: Sq, query tokens.
        block_q: query tokens per block, a multiple of 16.
        parts_per_kv: columns per key block.
        only: (B, H, Nq) bool, query blocks to write, or None for all.
    """
    B, H, Nq, Nkv = mass.shape
    tiles, columns, slots = parts.shape[2:]
    _join_parts_kernel[(triton.cdiv(Nkv, _COLUMNS), Nq, B * H)](
        parts, mass, mass if only is None else only.contiguous().view(torch.uint8),
        Nq, Nkv, tiles, triton.cdiv(seq_q, PART_ROWS), columns,
        block_q // PART_ROWS, parts_per_kv,
        SLOTS=slots, PAD_ROWS=triton.next_power_of_2(block_q // PART_ROWS), COLUMNS=_COLUMNS,
        ONLY=only is not None, num_warps=2,
    )  # fmt: skip
