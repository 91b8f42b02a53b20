# Generated from ops.yaml by codegen/generate.py. Do not edit.
"""The operators.

A plain call goes to an operator that has no derivatives, because those of
torch.library cost more than a small kernel even where nobody needs them. While
PyTorch traces or transforms, and where a gradient is needed, it goes to
_dispatch, which knows about derivatives.
"""

import torch
from torch import Tensor
from torch import compiler as _compiler
from torch.autograd import forward_ad as _forward_ad

from torch_foo import _dispatch
from torch_foo._autograd import is_plain as _is_plain
from torch_foo._autograd import mark_written as _mark_written

__all__ = [
    "add",
    "mul",
    "muladd",
    "rms_norm",
]

_ops = torch.ops.torch_foo
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_transforms_are_active = torch._C._are_functorch_transforms_active

# `_op` is what an overload calls, 0.2 µs later.
_add = _ops._add.default._op
_add_out = _ops._add_out.default._op
_mul = _ops._mul.default._op
_mul_out = _ops._mul_out.default._op
_muladd = _ops._muladd.default._op
_muladd_out = _ops._muladd_out.default._op
_rms_norm = _ops._rms_norm.default._op
_rms_norm_out = _ops._rms_norm_out.default._op


def add(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute ``a + b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        out: where to put the result: a tensor of the broadcast shape and of a's
            dtype and device. It may be a or b; another overlap with them is an
            error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: ``torch.add``, without type promotion.

    >>> torch_foo.add(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
    tensor([[2., 3.],
            [2., 3.]])
    """
    if out is not None:
        if _is_plain(out, a, b):
            _add_out(a, b, out)
            _mark_written(out)
        else:
            _ops.add.out(a, b, out=out)
        return out
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad._current_level >= 0
            or (_is_grad_enabled() and (a.requires_grad or b.requires_grad))
        )
    except AttributeError:  # not a tensor: the dispatcher says so
        return _ops.add.default(a, b)
    if is_special:
        return _dispatch.add(a, b)
    return _add(a, b)


def mul(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute ``a * b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        out: where to put the result: a tensor of the broadcast shape and of a's
            dtype and device. It may be a or b; another overlap with them is an
            error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: ``torch.mul``, without type promotion.

    >>> torch_foo.mul(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([3., 8.])
    """
    if out is not None:
        if _is_plain(out, a, b):
            _mul_out(a, b, out)
            _mark_written(out)
        else:
            _ops.mul.out(a, b, out=out)
        return out
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad._current_level >= 0
            or (_is_grad_enabled() and (a.requires_grad or b.requires_grad))
        )
    except AttributeError:  # not a tensor: the dispatcher says so
        return _ops.mul.default(a, b)
    if is_special:
        return _dispatch.mul(a, b)
    return _mul(a, b)


def muladd(
    a: Tensor, b: Tensor, c: float, *, out: Tensor | None = None
) -> Tensor:
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

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: ``torch.addcmul`` with the roles of its arguments changed.

    >>> torch_foo.muladd(torch.tensor([1.0, 2.0]), torch.tensor([3.0]), 0.5)
    tensor([3.5000, 6.5000])
    """
    if out is not None:
        if _is_plain(out, a, b):
            _muladd_out(a, b, c, out)
            _mark_written(out)
        else:
            _ops.muladd.out(a, b, c, out=out)
        return out
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad._current_level >= 0
            or (_is_grad_enabled() and (a.requires_grad or b.requires_grad))
        )
    except AttributeError:  # not a tensor: the dispatcher says so
        return _ops.muladd.default(a, b, c)
    if is_special:
        return _dispatch.muladd(a, b, c)
    return _muladd(a, b, c)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute ``x / sqrt(mean(x**2, -1) + eps) * weight``, rounded once.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.
        weight: (n,), of x's dtype and device; None means ones.
        eps: added to the mean square of a row.
        out: where to put the result: a tensor of x's shape, dtype and device.
            It may be x; another overlap with x or weight is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019;
    ``torch.nn.functional.rms_norm`` over the last dimension.

    >>> torch_foo.rms_norm(torch.tensor([3.0, 4.0]), eps=0.0)
    tensor([0.8485, 1.1314])
    """
    if out is not None:
        if _is_plain(out, x, weight):
            _rms_norm_out(x, weight, eps, out)
            _mark_written(out)
        else:
            _ops.rms_norm.out(x, weight, eps, out=out)
        return out
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad._current_level >= 0
            or (
                _is_grad_enabled()
                and (
                    x.requires_grad
                    or (weight is not None and weight.requires_grad)
                )
            )
        )
    except AttributeError:  # not a tensor: the dispatcher says so
        return _ops.rms_norm.default(x, weight, eps)
    if is_special:
        return _dispatch.rms_norm(x, weight, eps)
    return _rms_norm(x, weight, eps)
