"""Weights of one tile of scores in registers, and their form as an operand of the next product."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# 2^x of one x below 128 without the special-function unit: x = n + r, a cubic in r, n added to the
# exponent. Relative error 1e-4, a fortieth of what rounding weights to bfloat16 costs.
_CUBIC_EXP2 = """
    max.NaN.f32 r, $IN, 0fC2FE0000;
    min.NaN.f32 r, r, 0f42FFFFFF;
    add.f32 n, r, 0f4B400000;
    sub.f32 p, n, 0f4B400000;
    sub.f32 r, r, p;
    fma.rn.f32 p, r, 0f3D615111, 0f3E78062A;
    fma.rn.f32 p, p, r, 0f3F317AFD;
    fma.rn.f32 p, p, r, 0f3F800000;
    mov.b32 i, n;
    shl.b32 i, i, 23;
    mov.b32 j, p;
    add.s32 j, i, j;
    mov.b32 $OUT, j;
"""


def _mixed_exp2(share: int) -> str:
    """Return PTX for ``share`` exponentials, the last of them by the cubic."""
    lines = [f"ex2.approx.ftz.f32 ${i}, ${i + share};" for i in range(share - 1)]
    last = _CUBIC_EXP2.replace("$OUT", f"${share - 1}").replace("$IN", f"${2 * share - 1}")
    return "{ .reg .f32 r, n, p; .reg .b32 i, j;" + "".join(lines) + last + "}"


_EXP2_OF_4 = gl.constexpr(_mixed_exp2(4))
_EXP2_OF_8 = gl.constexpr(_mixed_exp2(8))
_FLOATS_4 = gl.constexpr(",".join(["=f"] * 4 + ["f"] * 4))
_FLOATS_8 = gl.constexpr(",".join(["=f"] * 8 + ["f"] * 8))


_ROUND_BF16 = gl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")
_ROUND_F16 = gl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")


@gluon.jit
def mixed_exp2(x, CUBIC_SHARE: gl.constexpr):
    """Take 2^x; every CUBIC_SHARE-th element on the FMA units, which the others leave idle."""
    if CUBIC_SHARE == 4:
        return gl.inline_asm_elementwise(
            _EXP2_OF_4, _FLOATS_4, [x], dtype=gl.float32, is_pure=True, pack=4
        )
    if CUBIC_SHARE == 8:
        return gl.inline_asm_elementwise(
            _EXP2_OF_8, _FLOATS_8, [x], dtype=gl.float32, is_pure=True, pack=8
        )
    return gl.exp2(x)


_LOG2 = gl.constexpr("lg2.approx.f32 $0, $1;")


@gluon.jit
def log2(x):
    """Take log2 of float32 in one instruction; the library's has branches."""
    return gl.inline_asm_elementwise(_LOG2, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def online_softmax(scores, row_max, row_sum, scale, CUBIC_SHARE: gl.constexpr):
    """Fold one tile into the running maximum and sum, both in scaled base-2 units."""
    tile_max = gl.max(scores, axis=1) * scale
    new_max = gl.maximum(row_max, tile_max)
    decay = gl.exp2(row_max - new_max)
    weights = mixed_exp2(scores * scale - gl.expand_dims(new_max, 1), CUBIC_SHARE)
    tile_sum = gl.sum(weights, axis=1)
    return weights, decay, new_max, row_sum * decay + tile_sum, tile_max, tile_sum


@gluon.jit
def thread_sums(weights):
    """Sum what each thread holds of a row: 8 columns of sums, whose threads never had to meet."""
    ROWS: gl.constexpr = weights.shape[0]
    KEYS: gl.constexpr = weights.shape[1]
    return gl.sum(gl.reshape(weights, [ROWS, KEYS // 8, 8]), axis=1)


@gluon.jit
def fixed_softmax(scores, row_max, scale, CUBIC_SHARE: gl.constexpr):
    """Weigh one tile against the maximum of the first tile."""
    weights = mixed_exp2(scores * scale - gl.expand_dims(row_max, 1), CUBIC_SHARE)
    return weights, thread_sums(weights)


@gluon.jit
def pack_weights(p, dtype: gl.constexpr):
    """Round pairs of weights into one int32: carried as halves they cost two more instructions."""
    ROWS: gl.constexpr = p.shape[0]
    KEYS: gl.constexpr = p.shape[1]
    ROUND: gl.constexpr = _ROUND_BF16 if dtype == gl.bfloat16 else _ROUND_F16
    low, high = p.reshape([ROWS, KEYS // 2, 2]).split()
    return gl.inline_asm_elementwise(
        ROUND, "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def unpack_weights(w, dtype: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
                    WEIGHTS: gl.constexpr):  # fmt: skip
    """Name packed weights as an operand, without instructions."""
    x = gl.join(w.to(gl.int16), (w >> 16).to(gl.int16)).reshape([ROWS, KEYS])
    return gl.convert_layout(x.to(dtype, bitcast=True), WEIGHTS, assert_trivial=True)
