"""What ``vidsparse bench kernels`` measures, as data."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class KernelCase:
    """One shape of block-sparse attention.

    Args:
        name: stable name, used in results files.
        H: heads (batch is 1).
        S: query and key tokens.
        D: head size.
        block_q: query tokens per block.
        block_kv: key tokens per block.
        density: share of blocks kept at random, in (0, 1].
        clusters: (query, key) clusters with Zipf-like sizes instead of equal blocks, or None.
        bits: 16, or 8 for attention on 8-bit tensor cores.
    """

    name: str
    H: int
    S: int
    D: int
    block_q: int
    block_kv: int
    density: float
    clusters: tuple[int, int] | None = None
    bits: int = 16


_WAN = KernelCase("wan14b-720p-128", 8, 75600, 128, 128, 128, 0.25)
_COG = KernelCase("cogvideox1.5-d64", 12, 45056, 64, 192, 128, 0.25)
_SMALL = KernelCase("small-d64", 48, 17550, 64, 128, 128, 0.1)
_CPU = KernelCase("cpu-4k-64", 6, 4096, 64, 64, 64, 0.25)

GPU_CASES: tuple[KernelCase, ...] = (
    *(replace(_WAN, density=d) for d in (1.0, 0.5, 0.25, 0.1)),
    *(replace(_WAN, name="wan14b-720p-kv64", block_kv=64, density=d) for d in (0.25, 0.1)),
    replace(_WAN, name="wan14b-720p-kv32", block_kv=32),
    replace(_WAN, name="wan14b-720p-kv16", block_kv=16),
    replace(_WAN, name="wan14b-720p-64x64", block_q=64, block_kv=64),
    replace(_WAN, name="wan14b-720p-ragged", clusters=(300, 1000)),
    *(replace(_WAN, name="wan14b-720p-8bit", bits=8, density=d) for d in (1.0, 0.25, 0.1)),
    *(replace(_COG, density=d) for d in (1.0, 0.25, 0.1)),
    replace(_COG, name="cogvideox1.5-d64-128", block_q=128),
    _SMALL,
    replace(_SMALL, name="small-d64-192", block_q=192),
)
CPU_CASES: tuple[KernelCase, ...] = (
    _CPU,
    replace(_CPU, name="cpu-2k-64", S=2304),
    replace(_CPU, name="cpu-3k-64", S=3328),
)
