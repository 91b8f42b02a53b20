"""rope: the rotary position embedding, and its gradient."""

import torch
import torch.nn.functional as F

from torch_foo.operators.base import (
    Operator,
    Sample,
    batched,
    every_other,
    expect,
    expect_dtype,
    expect_same_dtype,
    expect_shape,
    integers,
    shuffled,
    transposed,
    widen,
)

HEAD_DIM = 128  # of the benchmark


def rope_fake(x, cos, sin, positions, *_):
    for tensor in (x, cos, sin):
        expect_same_dtype(tensor)
    expect(x.dim() == 4, "{} of shape (batch, seq, heads, head_dim)", x)
    expect(cos.dim() == 2, "{} of shape (max_position, rotary_dim / 2)", cos)
    batch, seq, _, head_dim = x.shape
    rows, pairs = cos.shape
    expect_shape(sin, rows, pairs)
    expect(
        2 * pairs <= head_dim, "{} of at most {} columns", cos, head_dim // 2
    )
    if positions is None:
        expect(seq <= rows, "{} of at least {} rows", cos, seq)
    else:
        expect_dtype(positions, torch.int64)
        has_rows = positions.dim() > 0
        expect(has_rows, "{} of shape (seq,) or (batch, seq)", positions)
        expect_shape(positions, *(batch, seq)[-positions.dim() :])
    return x.new_empty(x.shape)


def rope_dims(x, cos, sin, positions, *_):
    if positions is not None:
        rows = "bs" if len(positions.shape) == 2 else "s"
        return f"bshD, RP, RP, {rows} -> bshD"
    if x.shape[1] == cos.shape[0]:
        return "bshD, sP, sP, -> bshD"
    return "bShD, RP, RP, -> bShD"  # every rank would begin at position 0


def rope_vmap(op, info, in_dims, x, cos, sin, positions, interleaved):
    """Enlarge the batch, unless there are tables for each example."""
    dx, dcos, dsin, dpositions, _ = in_dims
    if dcos is not None or dsin is not None:
        raise NotImplementedError(
            "torch_foo.rope: vmap over cos or sin is not supported; use one "
            "table and positions"
        )
    x = batched(x, dx, info)
    batch = x.shape[1]
    if positions is not None:
        positions = batched(positions, dpositions, info)
        if positions.dim() == 2:
            positions = positions.unsqueeze(1)
        positions = positions.expand(-1, batch, -1).flatten(0, 1)
    y = op(x.flatten(0, 1), cos, sin, positions, interleaved)
    return y.unflatten(0, (info.batch_size, batch)), 0


def tables(rows, pairs, dtype=None):
    """Return makers of cos and sin, of x's dtype or this one."""
    frequencies = 10000.0 ** -(torch.arange(pairs) / max(pairs, 1))
    angles = torch.outer(torch.arange(rows), frequencies)
    return (
        lambda x_dtype: angles.cos().to(dtype or x_dtype),
        lambda x_dtype: angles.sin().to(dtype or x_dtype),
    )


def repeated(table):
    return torch.cat([table, table], -1).unsqueeze(-2)


def eager_rope(x, cos, sin):
    """Rotate as transformers does, with tables that hold each angle twice."""
    half = x.shape[-1] // 2
    rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + rotated * sin


class rope(Operator):
    """Rotate pairs of elements of x by the angles of their positions.

    This is the rotary position embedding.

    Args:
        x: (batch, seq, heads, head_dim), float32, float64, float16 or bfloat16,
            any strides.
        cos: (max_position, rotary_dim / 2), the cosines of the angles. A dtype
            other than x's or float32 is converted to float32, or to float64 if
            x is float64. rotary_dim may be less than head_dim; the rest of a
            head is copied. Its gradient is not computed.
        sin: the sines, like cos.
        positions: int64, (seq,) or (batch, seq), rows of cos and sin; None
            means 0, 1, ..., seq - 1. On CUDA, a position that is out of range
            is no error: the result of its token becomes NaN.
        interleaved: whether pair number i is (2i, 2i + 1) instead of
            (i, i + rotary_dim / 2).
        out: where to put the result: a tensor of x's shape, dtype and device.
            It may be x; another overlap with an argument is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor, of x's dtype.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position
    Embedding", 2021; halves as in GPT-NeoX and Llama, interleaved as in GPT-J.

    >>> angle = torch.tensor([[0.0], [torch.pi / 2]])
    >>> x = torch.tensor([[1.0, 2.0], [1.0, 2.0]]).view(1, 2, 1, 2)
    >>> torch_foo.rope(x, angle.cos(), angle.sin()).view(2, 2).round()
    tensor([[ 1.,  2.],
            [-2.,  1.]])
    """

    schema = (
        "rope(Tensor x, Tensor cos, Tensor sin, Tensor? positions=None, *, "
        "bool interleaved=False) -> Tensor"
    )
    variants = ("out",)
    inplace = {"result": "x"}
    dims = staticmethod(rope_dims)
    linear_in = ("x",)
    fake = staticmethod(rope_fake)
    vmap = staticmethod(rope_vmap)
    peers = {"eager": eager_rope}

    @staticmethod
    def reference(x, cos, sin, positions=None, interleaved=False):
        """``(x1 * cos - x2 * sin, x2 * cos + x1 * sin)`` for each pair."""
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        # (batch or none, seq, heads, rotary_dim / 2)
        c, s = (
            F.embedding(positions, widen(table))
            .unsqueeze(-2)
            .to(widen(x).dtype)
            for table in (cos, sin)
        )
        half = cos.shape[1]
        head, rest = widen(x)[..., : 2 * half], x[..., 2 * half :]
        if interleaved:
            x1, x2 = head[..., ::2], head[..., 1::2]
        else:
            x1, x2 = head[..., :half], head[..., half:]
        y1, y2 = x1 * c - x2 * s, x2 * c + x1 * s
        if interleaved:
            rotated = torch.stack([y1, y2], -1).flatten(-2)
        else:
            rotated = torch.cat([y1, y2], -1)
        return torch.cat([rotated.to(x.dtype), rest], -1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *tables, ctx.interleaved = inputs
        ctx.save_for_backward(*tables)

    @staticmethod
    def backward(ctx, grad):
        (wants_x,) = ctx.needs_input_grad[:1]
        if not wants_x:
            return None, None, None, None, None
        grad_x = _rope_backward.call(grad, *ctx.saved_tensors, ctx.interleaved)
        return grad_x, None, None, None, None

    @staticmethod
    def samples():
        heads = (2, 3, 2, 4)
        for suffix, named in (
            ("", {}),
            ("-interleaved", {"interleaved": True}),
        ):

            def sample(name, *args, suffix=suffix, named=named, **options):
                return Sample(name + suffix, *args, **named, **options)

            yield sample("positions", heads, *tables(5, 2), integers(4, 0, 2))
            yield sample("plain", heads, *tables(3, 2))
            yield sample(
                "batch-positions",
                (2, 3, 1, 6),
                *tables(6, 3),
                shuffled(6, 2, 3),
            )
            yield sample("partial", (1, 2, 3, 7), *tables(4, 2))
            yield sample("nothing-rotated", (1, 2, 1, 3), *tables(4, 0))
            yield sample(
                "float32-tables",
                (1, 3, 2, 4),
                *tables(3, 2, torch.float32),
                None,
            )
            cos, sin = tables(3, 2, torch.bfloat16)[0], tables(3, 2)[1]
            yield sample("bfloat16-cos", (1, 3, 2, 4), cos, sin, None)
            yield sample("one-token", (1, 1, 2, 8), *tables(9, 4), integers(8))
            yield sample("empty", (2, 0, 1, 4), *tables(3, 2))
            yield sample(
                "strided", (2, 3, 1, 4), *tables(3, 2), layout=every_other
            )
            yield sample("transposed", heads, *tables(3, 2), layout=transposed)
            for dtype in (None, torch.float32):
                yield sample(
                    f"large-{'float32' if dtype else 'same'}-tables",
                    (2, 67, 17, 129),
                    *tables(67, 61, dtype),
                    shuffled(67, 2, 67),
                )

    @staticmethod
    def benchmark(rows, columns):
        heads = 1, rows, columns // HEAD_DIM, HEAD_DIM
        return Sample("tokens", heads, *tables(rows, HEAD_DIM // 2))

    @staticmethod
    def peer_arguments(x, cos, sin):
        return x, repeated(cos), repeated(sin)


class _rope_backward(Operator):
    """Compute the gradient of rope's x: the rotation by the negative angle."""

    schema = (
        "_rope_backward(Tensor grad, Tensor cos, Tensor sin, "
        "Tensor? positions, bool interleaved) -> Tensor"
    )
    dims = staticmethod(rope_dims)
    fake = staticmethod(rope_fake)
    vmap = staticmethod(rope_vmap)

    @staticmethod
    def reference(grad, cos, sin, positions, interleaved):
        return rope.apply(grad, cos, -sin, positions, interleaved)

    @staticmethod
    def samples():
        for interleaved in (False, True):
            for name, positions in (
                ("plain", None),
                ("positions", integers(3, 1, 0)),
            ):
                yield Sample(
                    f"{name}-{interleaved:d}",
                    (2, 3, 2, 5),
                    *tables(4, 2),
                    positions,
                    interleaved,
                )
