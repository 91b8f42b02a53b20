"""quantize_int8_rowwise: to int8 with one scale for each row."""

import torch

from torch_foo.operators.base import (
    Operator,
    Sample,
    batched,
    every_other,
    expect_rows,
    expect_same_dtype,
    transposed,
    widen,
)


def eager_quantize(x):
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    return (x / scale).round().to(torch.int8), scale


class quantize_int8_rowwise(Operator):
    """Quantize to int8 with a scale for each row.

    Over the last dimension, ``scale = max(abs(x)) / 127`` and
    ``q = round(x / scale)``, ties to even.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.

    Returns:
        ``(q, scale)``: int8, of x's shape; float32, (..., 1), 1 for a row of
        zeros. New contiguous tensors, without gradients.

    Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for
    Transformers at Scale", 2022, the row-wise part.

    >>> torch_foo.quantize_int8_rowwise(torch.tensor([[-127.0, 2.5, 64.0]]))
    (tensor([[-127,    2,   64]], dtype=torch.int8), tensor([[1.]]))
    """

    schema = "quantize_int8_rowwise(Tensor x) -> (Tensor q, Tensor scale)"
    dims = "...N -> ...N, ...N"
    peers = {"eager": eager_quantize}

    @staticmethod
    def reference(x):
        wide = widen(x)
        if x.shape[-1] == 0:
            scale = x.new_ones((*x.shape[:-1], 1), dtype=torch.float32)
        else:
            # By a tensor: on CUDA, torch multiplies by 1 / 127 instead.
            most = wide.new_full((), 127)
            scale = (wide.abs().amax(-1, keepdim=True) / most).float()
        scale = torch.where(scale == 0, 1.0, scale)
        quotient = (wide / scale).round().clamp(-127, 127)
        return quotient.nan_to_num(0).to(torch.int8), scale

    @staticmethod
    def fake(x):
        expect_same_dtype(x)
        expect_rows(x)
        q = x.new_empty(x.shape, dtype=torch.int8)
        return q, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)

    @staticmethod
    def vmap(op, info, in_dims, x):
        """Add rows."""
        return op(batched(x, in_dims[0], info)), (0, 0)

    @staticmethod
    def samples():
        yield Sample("rows", (3, 5))
        yield Sample("row", (7,))
        yield Sample("3d", (2, 3, 4))
        yield Sample("zeros", (2, 5), layout=torch.zeros_like)
        yield Sample("empty", (0, 5))
        yield Sample("no-columns", (3, 0))
        yield Sample("strided", (3, 5), layout=every_other)
        yield Sample("transposed", (3, 4), layout=transposed)
        yield Sample("large", (67, 4099))

    @staticmethod
    def benchmark(rows, columns):
        return Sample("matrix", (rows, columns))
