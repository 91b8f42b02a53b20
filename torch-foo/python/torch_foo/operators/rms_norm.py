"""rms_norm and add_rms_norm: over the last dimension, and their gradients."""

import torch
import torch.nn.functional as F

from torch_foo.operators.base import (
    Operator,
    Sample,
    batch_first,
    batched,
    every_other,
    expect_rows,
    expect_same_dtype,
    expect_shape,
    one_by_one,
    transposed,
    widen,
)
from torch_foo.operators.elementwise import add, mul


def norm_fake(x, weight, *_):
    expect_same_dtype(x)
    expect_rows(x)
    if weight is not None:
        expect_same_dtype(weight)
        expect_shape(weight, x.shape[-1])
    return x.new_empty(x.shape)


def weight_dtype(x, weight):
    """Return the dtype of the gradient of weight."""
    return (x if weight is None else weight).dtype


def gradients_fake(grad, x, weight, wants_x, wants_weight):
    norm_fake(x, weight)
    expect_same_dtype(x, grad)
    expect_shape(grad, *x.shape)
    return (
        x.new_empty(x.shape) if wants_x else None,
        x.new_empty(x.shape[-1:], dtype=weight_dtype(x, weight))
        if wants_weight
        else None,
    )


def norm_samples(tensors):
    """Yield samples of a weight and so many tensors of one shape before it."""

    def sample(name, shape, weight=True, **options):
        others = (shape[-1:], 1e-6) if weight else ()
        return Sample(name, *[shape] * tensors, *others, **options)

    yield sample("weight", (3, 5))
    yield sample("plain", (3, 5), weight=False)
    yield Sample("large-eps", *[(3, 5)] * tensors, None, 0.5)
    yield sample("row", (7,))
    yield sample("3d", (2, 3, 4))
    yield sample("one-column", (3, 1))
    yield sample("no-rows", (0, 5))
    yield sample("strided", (3, 5), layout=every_other)
    yield sample("transposed", (3, 4), layout=transposed)
    yield sample("other-weight", (3, 5), other=tensors)
    yield sample(
        "other-weight-strided", (4, 6), layout=every_other, other=tensors
    )
    yield sample("large", (67, 4099))
    yield sample("large-other-weight", (65, 4099), other=tensors)
    yield sample("tall", (2049, 131))


def eager_rms_norm(x, weight, eps):
    """Compute it as Llama does, whose result is rounded before the product."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def eager_add_rms_norm(x, residual, weight, eps):
    residual = residual + x
    return eager_rms_norm(residual, weight, eps), residual


def built_in_add_rms_norm(x, residual, weight, eps):
    residual = residual + x
    return F.rms_norm(residual, weight.shape, weight, eps), residual


def built_in_add_rms_norm_(x, residual, weight, eps):
    residual.add_(x)
    return F.rms_norm(residual, weight.shape, weight, eps), residual


class rms_norm(Operator):
    """Compute ``x / sqrt(mean(x**2, -1) + eps) * weight``, rounded once.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.
        weight: (n,), of x's device, float32, float64, float16 or bfloat16,
            whatever x is; None means ones.
        eps: added to the mean square of a row.
        out: where to put the result: a tensor of x's shape, dtype and device.
            It may be x; another overlap with x or weight is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor, of x's dtype.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019;
    ``torch.nn.functional.rms_norm`` over the last dimension.

    >>> torch_foo.rms_norm(torch.tensor([3.0, 4.0]), eps=0.0)
    tensor([0.8485, 1.1314])
    """

    schema = "rms_norm(Tensor x, Tensor? weight=None, float eps=1e-6) -> Tensor"
    variants = ("out",)
    dims = "...N, N -> ...N"
    fake = staticmethod(norm_fake)
    peers = {
        "eager": eager_rms_norm,
        "built-in": lambda x, w, eps: F.rms_norm(x, w.shape, w, eps),
    }

    @staticmethod
    def reference(x, weight=None, eps=1e-6):
        wide = widen(x)
        y = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
        if weight is not None:
            y = y * widen(weight)
        return y.to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, ctx.eps = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad[:2]
        return *_rms_norm_backward.call(grad, x, weight, ctx.eps, *wants), None

    @staticmethod
    def vmap(op, info, in_dims, x, weight, eps):
        """Add rows, unless there is a weight for each example."""
        dx, dweight, _ = in_dims
        if dweight is None:
            return op(x.movedim(dx, 0), weight, eps), 0
        # Not an operation on rows, so it takes two steps, with one rounding
        # all the same.
        ndim = x.dim() - (dx is not None)
        wide = torch.promote_types(x.dtype, torch.float32)
        x = batch_first(x, dx, ndim)
        weight = batch_first(weight, dweight, ndim)
        normed = op(x.to(wide), None, eps)
        return mul.call(normed, weight.to(wide)).to(x.dtype), 0

    @staticmethod
    def samples():
        yield from norm_samples(1)

    @staticmethod
    def benchmark(rows, columns):
        return Sample("matrix", (rows, columns), (columns,), 1e-6)


class _rms_norm_backward(Operator):
    """Compute the gradients of rms_norm, each None where not wanted."""

    schema = (
        "_rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps, "
        "bool wants_x, bool wants_weight) "
        "-> (Tensor grad_x, Tensor grad_weight)"
    )
    dims = "...N, ...N, N -> ...N, N"
    vmap = staticmethod(one_by_one)

    @staticmethod
    def reference(grad, x, weight, eps, wants_x, wants_weight):
        wide, g = widen(x), widen(grad)
        r = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
        normed = wide * r
        grad_x = grad_weight = None
        if wants_weight:
            grad_weight = (g * normed).sum_to_size(x.shape[-1:])
            grad_weight = grad_weight.to(weight_dtype(x, weight))
        if wants_x:
            if weight is not None:
                g = g * widen(weight)
            mean = (g * normed).mean(-1, keepdim=True)
            grad_x = (r * (g - normed * mean)).to(x.dtype)
        return grad_x, grad_weight

    @staticmethod
    def fake(grad, x, weight, eps, wants_x, wants_weight):
        return gradients_fake(grad, x, weight, wants_x, wants_weight)

    @staticmethod
    def samples():
        for wants in (
            (True, True),
            (True, False),
            (False, True),
            (False, False),
        ):
            name = f"wants-{wants[0]:d}{wants[1]:d}"
            yield Sample(name, (3, 5), (3, 5), (5,), 1e-6, *wants)
            yield Sample(f"{name}-plain", (3, 5), (3, 5), None, 1e-6, *wants)
            yield Sample(
                f"{name}-other", (3, 5), (3, 5), (5,), 1e-6, *wants, other=2
            )


class add_rms_norm(Operator):
    """Compute ``rms_norm(x + residual, weight, eps)`` and ``x + residual``.

    One pass over memory computes both.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.
        residual: of x's shape and device. Its dtype and x's are promoted as
            torch's are; where they differ, a copy of the narrower tensor is
            made.
        weight: (n,), of x's device, float32, float64, float16 or bfloat16,
            whatever x is; None means ones.
        eps: added to the mean square of a row.

    Returns:
        ``(y, residual_out)``: the norm, of the sum as it is in
        ``residual_out``, rounded to the dtype; and that sum. New contiguous
        tensors.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019;
    the residual connection before it as in Llama.

    >>> x, residual = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> torch_foo.add_rms_norm(x, residual, eps=0.0)
    (tensor([0.8485, 1.1314]), tensor([3., 4.]))
    """

    schema = (
        "add_rms_norm(Tensor x, Tensor residual, Tensor? weight=None, "
        "float eps=1e-6) -> (Tensor y, Tensor residual_out)"
    )
    inplace = {"y": "x", "residual_out": "residual"}
    dims = "...N, ...N, N -> ...N, ...N"
    peers = {
        "eager": eager_add_rms_norm,
        "built-in": built_in_add_rms_norm,
        "built-in out": built_in_add_rms_norm_,
    }

    @staticmethod
    def reference(x, residual, weight=None, eps=1e-6):
        residual_out = add.reference(x, residual)
        return rms_norm.reference(residual_out, weight, eps), residual_out

    @staticmethod
    def fake(x, residual, weight, eps):
        norm_fake(x, weight)
        expect_same_dtype(residual)
        expect_shape(residual, *x.shape)
        dtype = torch.promote_types(x.dtype, residual.dtype)
        return tuple(x.new_empty(x.shape, dtype=dtype) for _ in range(2))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, residual, weight, ctx.eps = inputs
        ctx.dtypes = x.dtype, residual.dtype
        _, residual_out = output
        ctx.save_for_backward(residual_out, weight)
        # Zeros would be work, and no DTensor where all else is.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_y, grad_residual_out):
        wants_x, wants_residual, wants_weight = ctx.needs_input_grad[:3]
        residual_out, weight = ctx.saved_tensors
        if grad_y is None:
            grad_sum, grad_weight = grad_residual_out, None
        else:
            grad_sum, grad_weight = _add_rms_norm_backward.call(
                grad_y,
                grad_residual_out,
                residual_out,
                weight,
                ctx.eps,
                wants_x or wants_residual,
                wants_weight,
            )
        if grad_sum is None:  # no gradient came, or only the weight's is wanted
            return None, None, grad_weight, None
        x_dtype, residual_dtype = ctx.dtypes
        return (
            grad_sum.to(x_dtype) if wants_x else None,
            grad_sum.to(residual_dtype) if wants_residual else None,
            grad_weight,
            None,
        )

    @staticmethod
    def vmap(op, info, in_dims, x, residual, weight, eps):
        """Add rows, unless there is a weight for each example."""
        dx, dresidual, dweight, _ = in_dims
        x, residual = batched(x, dx, info), batched(residual, dresidual, info)
        if dweight is None:
            return op(x, residual, weight, eps), (0, 0)
        total = add.call(x, residual)
        dims = 0, dweight, None
        y, _ = rms_norm.vmap(rms_norm.call, info, dims, total, weight, eps)
        return (y, total), (0, 0)

    @staticmethod
    def samples():
        yield from norm_samples(2)

    @staticmethod
    def benchmark(rows, columns):
        shape = rows, columns
        return Sample("matrices", shape, shape, (columns,), 1e-6)


class _add_rms_norm_backward(Operator):
    """Compute the gradients of add_rms_norm, each None where not wanted.

    That of x is also that of residual.
    """

    schema = (
        "_add_rms_norm_backward(Tensor grad, Tensor? grad_residual, "
        "Tensor residual_out, Tensor? weight, float eps, bool wants_x, "
        "bool wants_weight) -> (Tensor grad_x, Tensor grad_weight)"
    )
    dims = "...N, ...N, ...N, N -> ...N, N"
    vmap = staticmethod(one_by_one)

    @staticmethod
    def reference(
        grad, grad_residual, residual_out, weight, eps, wants_x, wants_weight
    ):
        grad_x, grad_weight = _rms_norm_backward.reference(
            widen(grad),
            widen(residual_out),
            None if weight is None else widen(weight),
            eps,
            wants_x,
            wants_weight,
        )
        if grad_x is not None and grad_residual is not None:
            grad_x = grad_x + widen(grad_residual)
        dtypes = residual_out.dtype, weight_dtype(residual_out, weight)
        return tuple(
            None if grad is None else grad.to(dtype)
            for grad, dtype in zip((grad_x, grad_weight), dtypes, strict=True)
        )

    @staticmethod
    def fake(
        grad, grad_residual, residual_out, weight, eps, wants_x, wants_weight
    ):
        if grad_residual is not None:
            expect_same_dtype(grad, grad_residual)
            expect_shape(grad_residual, *grad.shape)
        return gradients_fake(grad, residual_out, weight, wants_x, wants_weight)

    @staticmethod
    def samples():
        for sample in _rms_norm_backward.samples():
            grad, *rest = sample.arguments
            name, other = sample.name, sample.other
            if other is not None:
                other += 1
            yield Sample(name, grad, grad, *rest, other=other)
            yield Sample(f"{name}-norm-only", grad, None, *rest, other=other)
