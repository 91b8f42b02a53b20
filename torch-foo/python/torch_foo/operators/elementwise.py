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
    dims = "..., ... -> ..."
    #: The arguments after the tensors, in samples.
    scalars: ClassVar[tuple[float, ...]] = ()

    @staticmethod
    def fake(a, b, *_):
        expect_same_dtype(a)
        expect_same_dtype(b)
        shape = broadcast_shape(a, b)
        return a.new_empty(shape, dtype=torch.result_type(a, b))

    @staticmethod
    def vmap(op, info, in_dims, a, b, *rest):
        """Broadcast over one more dimension."""
        da, db, *_ = in_dims
        ndims = a.dim() - (da is not None), b.dim() - (db is not None)
        if a.dtype != b.dtype:  # a batch of scalars has a dimension
            a, b = promoted(a, b, ndims)
        ndim = max(ndims)
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
        yield Sample("other-a", (5,), (3, 5), *c, other=0)
        yield Sample("other-b", (3, 5), (3, 5), *c, other=1)
        yield Sample("other-matrix", (3, 5), (), *c, other=0)
        yield Sample("other-scalar", (3, 5), (), *c, other=1)
        yield Sample("other-of-scalars", (), (), *c, other=0)
        yield Sample("large", (67, 4099), (4099,), *c)

    @classmethod
    def benchmark(cls, rows, columns):
        shape = rows, columns
        return Sample("matrices", shape, shape, *cls.scalars)


def promoted(a, b, ndims=None):
    """Return a and b in the dtype of their result, as torch promotes them.

    ndims are their dimensions without those of vmap.
    """
    if ndims is None:
        dtype = torch.result_type(a, b)
    else:
        ones = [[1] * ndim for ndim in ndims]
        dtype = torch.result_type(a.new_empty(ones[0]), b.new_empty(ones[1]))
    return a.to(dtype), b.to(dtype)


def shape_and_dtype(tensor):
    return tensor.shape, tensor.dtype


def sum_to_size(grad, shape):
    """Sum over the dimensions that broadcast; torch's own takes 64 of them."""
    if grad.dim() <= 64:
        return grad.sum_to_size(shape)
    wide = (1,) * (grad.dim() - len(shape)) + shape
    sizes = [
        pair for pair in zip(grad.shape, wide, strict=True) if pair[0] != 1
    ]
    narrow = grad.reshape([have for have, _ in sizes])
    return narrow.sum_to_size([want for _, want in sizes]).reshape(shape)


def reduced(grad, shape, dtype):
    """Sum a gradient over the dimensions that broadcast."""
    return sum_to_size(grad, shape).to(dtype)


def gradient_of_product(grad, factor, shape, dtype):
    """Return ``grad * factor``, summed over the dimensions that broadcast."""
    if grad.shape == shape:
        return mul.call(grad, factor).to(dtype)
    # A sum of rounded products would be less accurate than the sum's dtype.
    wide = torch.promote_types(grad.dtype, torch.float32)
    product = mul.call(grad.to(wide), factor.to(wide))
    return reduced(product, shape, dtype)


def save_factors(ctx, inputs, output):
    a, b, *_ = inputs
    ctx.a, ctx.b = shape_and_dtype(a), shape_and_dtype(b)
    needs_a, needs_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(b if needs_a else None, a if needs_b else None)


def product_gradients(ctx, grad):
    """Return the gradients of ``a * b``."""
    b, a = ctx.saved_tensors
    return (
        None if b is None else gradient_of_product(grad, b, *ctx.a),
        None if a is None else gradient_of_product(grad, a, *ctx.b),
    )


class add(Elementwise):
    """Compute ``a + b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's device. Shapes broadcast and dtypes are promoted as torch's
            are; where the dtypes differ, a copy of the narrower tensor is made.
        out: where to put the result: a tensor of its shape, dtype and device.
            It may be a or b; another overlap with them is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: ``torch.add``.

    >>> torch_foo.add(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
    tensor([[2., 3.],
            [2., 3.]])
    """

    schema = "add(Tensor a, Tensor b) -> Tensor"
    linear_in = ("a b",)
    peers = {"eager": torch.add, "built-in out": torch.add}

    @staticmethod
    def reference(a, b):
        a, b = promoted(a, b)
        return (widen(a) + widen(b)).to(a.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.a, ctx.b = map(shape_and_dtype, inputs)

    @staticmethod
    def backward(ctx, grad):
        needs_a, needs_b = ctx.needs_input_grad[:2]
        return (
            reduced(grad, *ctx.a) if needs_a else None,
            reduced(grad, *ctx.b) if needs_b else None,
        )


class mul(Elementwise):
    """Compute ``a * b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's device. Shapes broadcast and dtypes are promoted as torch's
            are; where the dtypes differ, a copy of the narrower tensor is made.
        out: where to put the result: a tensor of its shape, dtype and device.
            It may be a or b; another overlap with them is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: ``torch.mul``.

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
        a, b = promoted(a, b)
        return (widen(a) * widen(b)).to(a.dtype)


class muladd(Elementwise):
    """Compute ``a * b + c``, rounded once.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's device. Shapes broadcast and dtypes are promoted as torch's
            are; where the dtypes differ, a copy of the narrower tensor is made.
        c: a number.
        out: where to put the result: a tensor of its shape, dtype and device.
            It may be a or b; another overlap with them is an error. Not
            differentiable.

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
        a, b = promoted(a, b)
        return (widen(a) * widen(b) + c).to(a.dtype)

    @staticmethod
    def backward(ctx, grad):
        return *product_gradients(ctx, grad), None
