"""linear: the product with a matrix of weights, for few rows."""

import math

import torch
import torch.nn.functional as F

from torch_foo.operators.base import (
    Operator,
    Sample,
    every_other,
    expect,
    expect_rows,
    expect_same_dtype,
    expect_shape,
    one_by_one,
    transposed,
    widen,
)


class linear(Operator):
    """Compute ``x @ weight.T + bias``, rounded once.

    It is made for the rows of a generated token: up to about 16, or 8 of
    bfloat16 where the CPU has AVX-512. For more,
    ``torch.nn.functional.linear`` is faster.

    Args:
        x: (..., k), float32, float64, float16 or bfloat16, any strides.
        weight: (n, k), of x's dtype and device.
        bias: (n,), of x's dtype and device; None means zeros.
        out: where to put the result: a tensor of shape (..., n), of x's dtype
            and device. An overlap with x, weight or bias is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: ``torch.nn.functional.linear``.

    >>> weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    >>> torch_foo.linear(torch.tensor([1.0, 1.0]), weight)
    tensor([3., 3.])
    """

    schema = "linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor"
    variants = ("out",)
    autocast = "promote"
    dims = "...k, nk, n -> ...n"
    linear_in = ("x bias", "weight bias")
    peers = {
        "eager": F.linear,
        "built-in out": lambda x, w, out: torch.mm(x, w.T, out=out),
    }
    sizes = ((1, 4096), (4, 4096), (16, 4096))
    times_gradients = False  # they are torch's products

    @staticmethod
    def reference(x, weight, bias=None):
        y = widen(x) @ widen(weight).T
        if bias is not None:
            y = y + widen(bias)
        return y.to(x.dtype)

    @staticmethod
    def fake(x, weight, bias):
        expect_same_dtype(x, weight, bias)
        expect_rows(x)
        expect(weight.dim() == 2, "{} of 2 dimensions", weight)
        n = weight.shape[0]
        expect_shape(weight, n, x.shape[-1])
        if bias is not None:
            expect_shape(bias, n)
        return x.new_empty((*x.shape[:-1], n))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        """Multiply by torch: nothing is faster for the rows of a training."""
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        x, weight = ctx.saved_tensors
        n, k = weight.shape
        rows = math.prod(x.shape[:-1])
        flat = grad.reshape(rows, n)
        return (
            (flat @ weight).reshape(x.shape) if wants_x else None,
            flat.T @ x.reshape(rows, k) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )

    @staticmethod
    def flops(x, weight, *_, **__):
        return 2 * math.prod(x) * weight[0]

    @staticmethod
    def vmap(op, info, in_dims, x, weight, bias):
        """Add rows, unless there are weights for each example."""
        dx, dweight, dbias = in_dims
        if dweight is None and dbias is None:
            return op(x.movedim(dx, 0), weight, bias), 0
        return one_by_one(op, info, in_dims, x, weight, bias)

    @staticmethod
    def samples():
        yield Sample("bias", (3, 5), (4, 5), (4,))
        yield Sample("plain", (3, 5), (4, 5))
        yield Sample("row", (7,), (4, 7), (4,))
        yield Sample("3d", (2, 3, 4), (5, 4), (5,))
        yield Sample("many-rows", (17, 2, 5), (6, 5))
        yield Sample("no-rows", (0, 5), (4, 5), (4,))
        yield Sample("no-columns", (3, 5), (0, 5), (0,))
        yield Sample("no-products", (3, 0), (4, 0), (4,))
        yield Sample("strided", (3, 5), (4, 5), (4,), layout=every_other)
        yield Sample("transposed", (2, 3, 5), (4, 5), (4,), layout=transposed)
        yield Sample("large", (3, 1031), (517, 1031), (517,))

    @staticmethod
    def benchmark(rows, columns):
        """Multiply without a bias, as most models do."""
        return Sample("layer", (rows, columns), (4096, columns))
