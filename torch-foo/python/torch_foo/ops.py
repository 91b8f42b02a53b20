# Generated from python/torch_foo/operators by codegen/generate.py. Do not edit.
"""The operators as functions.

A plain call goes to an operator that has no derivatives, because those of
torch.library cost more than a small kernel even where nobody needs them. While
PyTorch traces or transforms, and where a gradient is needed, it goes to
Operator.apply, which knows about derivatives.
"""
# ruff: noqa: D205

import torch
from torch import Tensor

from torch_foo._registration import mark_written as _mark_written
from torch_foo._torch_internals import compiler_state as _compiler_state
from torch_foo._torch_internals import forward_ad_state as _forward_ad_state
from torch_foo._torch_internals import operation as _operation
from torch_foo._torch_internals import (
    transforms_are_active as _transforms_are_active,
)
from torch_foo.operators import OPERATORS as _OPERATORS

__all__ = [
    "add",
    "add_rms_norm",
    "add_rms_norm_",
    "cross_entropy",
    "gelu_mul",
    "linear",
    "mul",
    "muladd",
    "quantize_int8_rowwise",
    "rms_norm",
    "rope",
    "rope_",
    "silu_mul",
]

_ops = torch.ops.torch_foo
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled

_cross_entropy = _operation(_ops._cross_entropy.default)
_cross_entropy_call = _OPERATORS["cross_entropy"].apply
_add = _operation(_ops._add.default)
_add_out = _operation(_ops._add_out.default)
_add_call = _OPERATORS["add"].apply
_mul = _operation(_ops._mul.default)
_mul_out = _operation(_ops._mul_out.default)
_mul_call = _OPERATORS["mul"].apply
_muladd = _operation(_ops._muladd.default)
_muladd_out = _operation(_ops._muladd_out.default)
_muladd_call = _OPERATORS["muladd"].apply
_silu_mul = _operation(_ops._silu_mul.default)
_silu_mul_out = _operation(_ops._silu_mul_out.default)
_silu_mul_call = _OPERATORS["silu_mul"].apply
_gelu_mul = _operation(_ops._gelu_mul.default)
_gelu_mul_out = _operation(_ops._gelu_mul_out.default)
_gelu_mul_call = _OPERATORS["gelu_mul"].apply
_linear = _operation(_ops._linear.default)
_linear_out = _operation(_ops._linear_out.default)
_linear_call = _OPERATORS["linear"].apply
_quantize_int8_rowwise = _operation(_ops.quantize_int8_rowwise.default)
_rms_norm = _operation(_ops._rms_norm.default)
_rms_norm_out = _operation(_ops._rms_norm_out.default)
_rms_norm_call = _OPERATORS["rms_norm"].apply
_add_rms_norm = _operation(_ops._add_rms_norm.default)
_add_rms_norm_ = _operation(_ops._add_rms_norm_.default)
_add_rms_norm_call = _OPERATORS["add_rms_norm"].apply
_rope = _operation(_ops._rope.default)
_rope_out = _operation(_ops._rope_out.default)
_rope_ = _operation(_ops._rope_.default)
_rope_call = _OPERATORS["rope"].apply


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy of class indices over the last dimension.

    No log-probabilities are kept in memory.

    Args:
        logits: (..., n), float32, float64, float16 or bfloat16, any strides.
        target: int64, (...), each in [0, n) or ignore_index. (In
            ``torch.nn.functional.cross_entropy`` classes are the second
            dimension.)
        ignore_index: targets that have no loss and no gradient.
        reduction: "mean" over the targets that are not ignored (nan if there
            are none), "sum", or "none".
        label_smoothing: 0 to 1, the share of the uniform distribution in the
            target's.

    Returns:
        The loss, float32 (float64 for float64 logits): of shape (...) if the
        reduction is "none", else ().

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: ``torch.nn.functional.cross_entropy``; label smoothing from Szegedy
    et al., "Rethinking the Inception Architecture for Computer Vision", 2015.

    >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    >>> torch_foo.cross_entropy(logits, torch.tensor([1, 0]))
    tensor(0.3709)
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (logits.requires_grad or target.requires_grad)
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        return _ops.cross_entropy.default(
            logits,
            target,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )[0]

    if is_special:
        return _cross_entropy_call(
            logits, target, ignore_index, reduction, label_smoothing
        )[0]
    return _cross_entropy(
        logits, target, ignore_index, reduction, label_smoothing
    )[0]


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
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: ``torch.add``, without type promotion.

    >>> torch_foo.add(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
    tensor([[2., 3.],
            [2., 3.]])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    a.requires_grad
                    or b.requires_grad
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.add.out(a, b, out=out)
        return _ops.add.default(a, b)

    if out is not None:
        if is_special:
            _ops.add.out(a, b, out=out)
        else:
            _add_out(a, b, out)
            _mark_written(out)
        return out

    if is_special:
        return _add_call(a, b)
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
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: ``torch.mul``, without type promotion.

    >>> torch_foo.mul(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([3., 8.])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    a.requires_grad
                    or b.requires_grad
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.mul.out(a, b, out=out)
        return _ops.mul.default(a, b)

    if out is not None:
        if is_special:
            _ops.mul.out(a, b, out=out)
        else:
            _mul_out(a, b, out)
            _mark_written(out)
        return out

    if is_special:
        return _mul_call(a, b)
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
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: ``torch.addcmul`` with the roles of its arguments changed.

    >>> torch_foo.muladd(torch.tensor([1.0, 2.0]), torch.tensor([3.0]), 0.5)
    tensor([3.5000, 6.5000])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    a.requires_grad
                    or b.requires_grad
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.muladd.out(a, b, c, out=out)
        return _ops.muladd.default(a, b, c)

    if out is not None:
        if is_special:
            _ops.muladd.out(a, b, c, out=out)
        else:
            _muladd_out(a, b, c, out)
            _mark_written(out)
        return out

    if is_special:
        return _muladd_call(a, b, c)
    return _muladd(a, b, c)


def silu_mul(
    gate: Tensor, up: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Compute ``silu(gate) * up``, rounded once; the gate of SwiGLU.

    Args:
        gate: float32, float64, float16 or bfloat16, of any shape and strides.
        up: of gate's shape, dtype and device. None means that gate is packed:
            its last dimension holds gate, then up.
        out: where to put the result: a tensor of the result's shape and of
            gate's dtype and device. It may be gate or up; another overlap with
            them is an error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020;
    ``torch.nn.functional.silu``.

    >>> torch_foo.silu_mul(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    tensor([0.0000, 1.4621])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    gate.requires_grad
                    or (up is not None and up.requires_grad)
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.silu_mul.out(gate, up, out=out)
        return _ops.silu_mul.default(gate, up)

    if out is not None:
        if is_special:
            _ops.silu_mul.out(gate, up, out=out)
        else:
            _silu_mul_out(gate, up, out)
            _mark_written(out)
        return out

    if is_special:
        return _silu_mul_call(gate, up)
    return _silu_mul(gate, up)


def gelu_mul(
    gate: Tensor,
    up: Tensor | None = None,
    *,
    approximate: str = "none",
    out: Tensor | None = None,
) -> Tensor:
    """Compute ``gelu(gate) * up``, rounded once; the gate of GEGLU.

    Args:
        gate: float32, float64, float16 or bfloat16, of any shape and strides.
        up: of gate's shape, dtype and device. None means that gate is packed:
            its last dimension holds gate, then up.
        approximate: "none" for gelu by the error function, "tanh" for its
            approximation by tanh.
        out: where to put the result: a tensor of the result's shape and of
            gate's dtype and device. It may be gate or up; another overlap with
            them is an error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020;
    ``torch.nn.functional.gelu``.

    >>> torch_foo.gelu_mul(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    tensor([0.0000, 1.6827])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    gate.requires_grad
                    or (up is not None and up.requires_grad)
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.gelu_mul.out(gate, up, approximate=approximate, out=out)
        return _ops.gelu_mul.default(gate, up, approximate=approximate)

    if out is not None:
        if is_special:
            _ops.gelu_mul.out(gate, up, approximate=approximate, out=out)
        else:
            _gelu_mul_out(gate, up, approximate, out)
            _mark_written(out)
        return out

    if is_special:
        return _gelu_mul_call(gate, up, approximate)
    return _gelu_mul(gate, up, approximate)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute ``x @ weight.T + bias``, rounded once.

    It is made for the rows of a generated token: a few of float32, or one of
    bfloat16. For more, ``torch.nn.functional.linear`` is faster.

    Args:
        x: (..., k), float32, float64, float16 or bfloat16, any strides.
        weight: (n, k), of x's dtype and device.
        bias: (n,), of x's dtype and device; None means zeros.
        out: where to put the result: a tensor of shape (..., n), of x's dtype
            and device. An overlap with x, weight or bias is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: ``torch.nn.functional.linear``.

    >>> weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    >>> torch_foo.linear(torch.tensor([1.0, 1.0]), weight)
    tensor([3., 3.])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    x.requires_grad
                    or weight.requires_grad
                    or (bias is not None and bias.requires_grad)
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.linear.out(x, weight, bias, out=out)
        return _ops.linear.default(x, weight, bias)

    if out is not None:
        if is_special:
            _ops.linear.out(x, weight, bias, out=out)
        else:
            _linear_out(x, weight, bias, out)
            _mark_written(out)
        return out

    if is_special:
        return _linear_call(x, weight, bias)
    return _linear(x, weight, bias)


def quantize_int8_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to int8 with a scale for each row.

    Over the last dimension, ``scale = max(abs(x)) / 127`` and
    ``q = round(x / scale)``, ties to even.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.

    Returns:
        ``(q, scale)``: int8, of x's shape; float32, (..., 1), 1 for a row of
        zeros. New contiguous tensors, without gradients.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for
    Transformers at Scale", 2022, the row-wise part.

    >>> torch_foo.quantize_int8_rowwise(torch.tensor([[-127.0, 2.5, 64.0]]))
    (tensor([[-127,    2,   64]], dtype=torch.int8), tensor([[1.]]))
    """
    try:
        is_special = (
            _is_dynamo_compiling() or _compiler_state._is_exporting_flag
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        return _ops.quantize_int8_rowwise.default(x)

    if is_special:
        return _ops.quantize_int8_rowwise.default(x)
    return _quantize_int8_rowwise(x)


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
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019;
    ``torch.nn.functional.rms_norm`` over the last dimension.

    >>> torch_foo.rms_norm(torch.tensor([3.0, 4.0]), eps=0.0)
    tensor([0.8485, 1.1314])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    x.requires_grad
                    or (weight is not None and weight.requires_grad)
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.rms_norm.out(x, weight, eps, out=out)
        return _ops.rms_norm.default(x, weight, eps)

    if out is not None:
        if is_special:
            _ops.rms_norm.out(x, weight, eps, out=out)
        else:
            _rms_norm_out(x, weight, eps, out)
            _mark_written(out)
        return out

    if is_special:
        return _rms_norm_call(x, weight, eps)
    return _rms_norm(x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Compute ``rms_norm(x + residual, weight, eps)`` and ``x + residual``.

    One pass over memory computes both.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.
        residual: of x's shape, dtype and device.
        weight: (n,), of x's dtype and device; None means ones.
        eps: added to the mean square of a row.

    Returns:
        ``(y, residual_out)``: the norm, of the sum as it is in
        ``residual_out``, rounded to the dtype; and that sum. New contiguous
        tensors.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019;
    the residual connection before it as in Llama.

    >>> x, residual = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> torch_foo.add_rms_norm(x, residual, eps=0.0)
    (tensor([0.8485, 1.1314]), tensor([3., 4.]))
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    x.requires_grad
                    or residual.requires_grad
                    or (weight is not None and weight.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        return _ops.add_rms_norm.default(x, residual, weight, eps)

    if is_special:
        return _add_rms_norm_call(x, residual, weight, eps)
    return _add_rms_norm(x, residual, weight, eps)


def add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> None:
    """Do what :func:`add_rms_norm` does, in place: x takes y, residual takes residual_out.

    The arguments and errors are the same. Not differentiable.
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    x.requires_grad
                    or residual.requires_grad
                    or (weight is not None and weight.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:
        is_special = True
    if is_special:
        _ops.add_rms_norm_.default(x, residual, weight, eps)
    else:
        _add_rms_norm_(x, residual, weight, eps)
        _mark_written(x, residual)


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate pairs of elements of x by the angles of their positions.

    This is the rotary position embedding.

    Args:
        x: (batch, seq, heads, head_dim), float32, float64, float16 or bfloat16,
            any strides.
        cos: (max_position, rotary_dim / 2), the cosines of the angles, of x's
            dtype or float32. rotary_dim may be less than head_dim; the rest of
            a head is copied. Its gradient is not computed.
        sin: the sines, like cos.
        positions: int64, (seq,) or (batch, seq), rows of cos and sin; None
            means 0, 1, ..., seq - 1.
        interleaved: whether pair number i is (2i, 2i + 1) instead of
            (i, i + rotary_dim / 2).
        out: where to put the result: a tensor of x's shape, dtype and device.
            It may be x; another overlap with an argument is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has
            been written then.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position
    Embedding", 2021; halves as in GPT-NeoX and Llama, interleaved as in GPT-J.

    >>> angle = torch.tensor([[0.0], [torch.pi / 2]])
    >>> x = torch.tensor([[1.0, 2.0], [1.0, 2.0]]).view(1, 2, 1, 2)
    >>> torch_foo.rope(x, angle.cos(), angle.sin()).view(2, 2).round()
    tensor([[ 1.,  2.],
            [-2.,  1.]])
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    x.requires_grad
                    or cos.requires_grad
                    or sin.requires_grad
                    or (positions is not None and positions.requires_grad)
                    or (out is not None and out.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:  # not a tensor: the operator that users know says so
        if out is not None:
            return _ops.rope.out(
                x, cos, sin, positions, interleaved=interleaved, out=out
            )
        return _ops.rope.default(
            x, cos, sin, positions, interleaved=interleaved
        )

    if out is not None:
        if is_special:
            _ops.rope.out(
                x, cos, sin, positions, interleaved=interleaved, out=out
            )
        else:
            _rope_out(x, cos, sin, positions, interleaved, out)
            _mark_written(out)
        return out

    if is_special:
        return _rope_call(x, cos, sin, positions, interleaved)
    return _rope(x, cos, sin, positions, interleaved)


def rope_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> None:
    """Do what :func:`rope` does, in place: x takes the result.

    The arguments and errors are the same. Not differentiable.
    """
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler_state._is_exporting_flag
            or _transforms_are_active()
            or _forward_ad_state._current_level >= 0
            or (
                (
                    x.requires_grad
                    or cos.requires_grad
                    or sin.requires_grad
                    or (positions is not None and positions.requires_grad)
                )
                and _is_grad_enabled()
            )
        )
    except AttributeError:
        is_special = True
    if is_special:
        _ops.rope_.default(x, cos, sin, positions, interleaved=interleaved)
    else:
        _rope_(x, cos, sin, positions, interleaved)
        _mark_written(x)
