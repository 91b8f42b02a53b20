"""Element-wise operators with broadcasting, and their gradients."""

from typing import ClassVar

import torch

from torch_foo.operators.base import (
    Operator,
    Sample,
    batch_first,
    broadcast_shape,
    every_other,
    expect_same_dtype,
    transposed,
    widen,
)


class Elementwise(Operator, family=True):
    """What operators on two tensors that broadcast share."""

    variants = ("out",)
    tags = ("pointwise",)
    autocast = "promote"
    dims = "..., ... -> ..."
    #: The arguments after the tensors, in samples.
    scalars: ClassVar[tuple[float, ...]] = ()

    @staticmethod
    def fake(a, b, *_):
        expect_same_dtype(a, b)
        return a.new_empty(broadcast_shape(a, b))

    @staticmethod
    def vmap(op, info, in_dims, a, b, *rest):
        """Broadcast over one more dimension."""
        da, db, *_ = in_dims
        ndim = max(a.dim() - (da is not None), b.dim() - (db is not None))
        return op(batch_first(a, da, ndim), batch_first(b, db, ndim), *rest), 0

    @classmethod
    def samples(cls):
        c = cls.scalars
        yield Sample("row", (3, 5), (5,), *c)
        yield Sample("equal", (3, 5), (3, 5), *c)
        yield Sample("column", (1, 3, 1), (2, 1, 5), *c)
        yield Sample("scalar", (), (2, 3), *c)
        yield Sample("scalars", (), (), *c)
        yield Sample("empty", (0, 3), (1, 3), *c)
        yield Sample("transposed", (4, 3), (4, 3), *c, layout=transposed)
        yield Sample("strided", (3, 5), (3, 5), *c, layout=every_other)
        yield Sample("large", (67, 4099), (4099,), *c)

    @classmethod
    def benchmark(cls, rows, columns):
        shape = rows, columns
        return Sample("matrices", shape, shape, *cls.scalars)


def gradient_of_product(grad, factor, shape):
    """Return ``grad * factor``, summed over the dimensions that broadcast."""
    if grad.shape == shape:
        return mul.call(grad, factor)
    # A sum of rounded products would be less accurate than the sum's dtype.
    wide = torch.promote_types(grad.dtype, torch.float32)
    product = mul.call(grad.to(wide), factor.to(wide))
    return product.sum_to_size(shape).to(grad.dtype)


def save_factors(ctx, inputs, output):
    a, b, *_ = inputs
    ctx.shapes = a.shape, b.shape
    needs_a, needs_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(b if needs_a else None, a if needs_b else None)


def product_gradients(ctx, grad):
    """Return the gradients of ``a * b``."""
    b, a = ctx.saved_tensors
    a_shape, b_shape = ctx.shapes
    return (
        None if b is None else gradient_of_product(grad, b, a_shape),
        None if a is None else gradient_of_product(grad, a, b_shape),
    )


class add(Elementwise):
    """Compute ``a + b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        out: where to put the result: a tensor of the broadcast shape and of a's
            dtype and device. It may be a or b; another overlap with them is an
            error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: ``torch.add``, without type promotion.

    >>> torch_foo.add(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
    tensor([[2., 3.],
            [2., 3.]])
    """

    schema = "add(Tensor a, Tensor b) -> Tensor"
    linear_in = ("a b",)
    peers = {"eager": torch.add, "built-in out": torch.add}

    @staticmethod
    def reference(a, b):
        return (widen(a) + widen(b)).to(a.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b = inputs
        ctx.shapes = a.shape, b.shape

    @staticmethod
    def backward(ctx, grad):
        needs_a, needs_b = ctx.needs_input_grad[:2]
        a_shape, b_shape = ctx.shapes
        return (
            grad.sum_to_size(a_shape) if needs_a else None,
            grad.sum_to_size(b_shape) if needs_b else None,
        )


class mul(Elementwise):
    """Compute ``a * b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        out: where to put the result: a tensor of the broadcast shape and of a's
            dtype and device. It may be a or b; another overlap with them is an
            error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: ``torch.mul``, without type promotion.

    >>> torch_foo.mul(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([3., 8.])
    """

    schema = "mul(Tensor a, Tensor b) -> Tensor"
    linear_in = ("a", "b")
    peers = {"eager": torch.mul, "built-in out": torch.mul}
    setup_context = staticmethod(save_factors)
    backward = staticmethod(product_gradients)

    @staticmethod
    def reference(a, b):
        return (widen(a) * widen(b)).to(a.dtype)


class muladd(Elementwise):
    """Compute ``a * b + c``, rounded once.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        c: a number.
        out: where to put the result: a tensor of the broadcast shape and of a's
            dtype and device. It may be a or b; another overlap with them is an
            error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: ``torch.addcmul`` with the roles of its arguments changed.

    >>> torch_foo.muladd(torch.tensor([1.0, 2.0]), torch.tensor([3.0]), 0.5)
    tensor([3.5000, 6.5000])
    """

    schema = "muladd(Tensor a, Tensor b, float c) -> Tensor"
    scalars = (-0.5,)
    setup_context = staticmethod(save_factors)
    peers = {
        "eager": lambda a, b, c: a * b + c,
        "built-in": lambda a, b, c: torch.addcmul(a.new_tensor(c), a, b),
        "built-in out": lambda a, b, c, out: torch.addcmul(
            a.new_tensor(c), a, b, out=out
        ),
    }

    @staticmethod
    def reference(a, b, c):
        return (widen(a) * widen(b) + c).to(a.dtype)

    @staticmethod
    def backward(ctx, grad):
        return *product_gradients(ctx, grad), None
