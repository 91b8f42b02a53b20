# Generated from python/torch_foo/operators by codegen/generate.py. Do not edit.
"""The operators as functions.

A plain call goes to an operator that has no derivatives, because those of
torch.library cost more than a small kernel even where nobody needs them. While
PyTorch records a call, to trace, transform or differentiate it, the call goes
to Operator.apply, which knows about derivatives.
"""
# mypy: disable-error-code="no-any-return"
# fmt: off

import torch
from torch import Tensor
from torch.autograd.graph import increment_version as _increment_version

from torch_foo._registration import document as _document
from torch_foo._registration import refuse_none as _refuse_none
from torch_foo._registration import versioned as _versioned
from torch_foo._torch_internals import compiler_state as _compiler_state
from torch_foo._torch_internals import forward_ad_state as _forward_ad_state
from torch_foo._torch_internals import operation as _operation
from torch_foo._torch_internals import (
    transforms_are_active as _transforms_are_active,
)
from torch_foo.operators import OPERATORS as _OPERATORS

__all__ = ["add", "add_rms_norm", "add_rms_norm_", "attention", "cross_entropy",
    "dequantize", "gelu_mul", "linear", "linear_quantized", "mul", "muladd",
    "quantize", "quantize_int8_rowwise", "rms_norm", "rope", "rope_",
    "silu_mul"]

_ops = torch.ops.torch_foo
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled

_attention = _operation(_ops._attention.default)
_attention_out = _operation(_ops._attention_out.default)
_attention_operator = _OPERATORS["attention"]
_attention_apply = _attention_operator.apply


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None =
    None, *, scale: float | None = None, out: Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((query.requires_grad or
            key.requires_grad or value.requires_grad or (mask is not None and
            mask.requires_grad) or (out is not None and out.requires_grad)) and
            _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.attention.default, query, key, value, mask, scale)
        return _attention_operator.documented(query, key, value, mask, scale,
            out=out)
    if out is not None:
        if is_recorded:
            return _attention_operator.documented(query, key, value, mask,
                scale, out=out)
        versioned = _versioned("attention", out)
        _attention_out(query, key, value, mask, scale, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _attention_apply(query, key, value, mask, scale)
    return _attention(query, key, value, mask, scale)


_quantize = _operation(_ops.quantize.default)
_quantize_operator = _OPERATORS["quantize"]
_quantize_apply = _quantize_operator.apply


def quantize(weight: Tensor, format: str = "q8_0") -> Tensor:
    if weight is None:
        _refuse_none(_ops.quantize.default, weight, format)
    is_recorded = (_is_dynamo_compiling() or _compiler_state._is_exporting_flag)
    if is_recorded:
        return _quantize_apply(weight, format)
    return _quantize(weight, format)


_dequantize = _operation(_ops.dequantize.default)
_dequantize_operator = _OPERATORS["dequantize"]
_dequantize_apply = _dequantize_operator.apply


def dequantize(blocks: Tensor, format: str = "q8_0") -> Tensor:
    if blocks is None:
        _refuse_none(_ops.dequantize.default, blocks, format)
    is_recorded = (_is_dynamo_compiling() or _compiler_state._is_exporting_flag)
    if is_recorded:
        return _dequantize_apply(blocks, format)
    return _dequantize(blocks, format)


_linear_quantized = _operation(_ops._linear_quantized.default)
_linear_quantized_out = _operation(_ops._linear_quantized_out.default)
_linear_quantized_operator = _OPERATORS["linear_quantized"]
_linear_quantized_apply = _linear_quantized_operator.apply


def linear_quantized(x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    format: str = "q8_0", out: Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            weight.requires_grad or (bias is not None and bias.requires_grad) or
            (out is not None and out.requires_grad)) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.linear_quantized.default, x, weight, bias, format)
        return _linear_quantized_operator.documented(x, weight, bias, format,
            out=out)
    if out is not None:
        if is_recorded:
            return _linear_quantized_operator.documented(x, weight, bias,
                format, out=out)
        versioned = _versioned("linear_quantized", out)
        _linear_quantized_out(x, weight, bias, format, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _linear_quantized_apply(x, weight, bias, format)
    return _linear_quantized(x, weight, bias, format)


_cross_entropy = _operation(_ops._cross_entropy.default)
_cross_entropy_operator = _OPERATORS["cross_entropy"]
_cross_entropy_apply = _cross_entropy_operator.apply


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((logits.requires_grad or
            target.requires_grad) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.cross_entropy.default, logits, target, ignore_index,
            reduction, label_smoothing)
        return _cross_entropy_operator.documented(logits, target, ignore_index,
            reduction, label_smoothing)[0]
    if is_recorded:
        return _cross_entropy_apply(logits, target, ignore_index, reduction,
            label_smoothing)[0]
    return _cross_entropy(logits, target, ignore_index, reduction,
        label_smoothing)[0]


_add = _operation(_ops._add.default)
_add_out = _operation(_ops._add_out.default)
_add_operator = _OPERATORS["add"]
_add_apply = _add_operator.apply


def add(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((a.requires_grad or
            b.requires_grad or (out is not None and out.requires_grad)) and
            _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.add.default, a, b)
        return _add_operator.documented(a, b, out=out)
    if out is not None:
        if is_recorded:
            return _add_operator.documented(a, b, out=out)
        versioned = _versioned("add", out)
        _add_out(a, b, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _add_apply(a, b)
    return _add(a, b)


_mul = _operation(_ops._mul.default)
_mul_out = _operation(_ops._mul_out.default)
_mul_operator = _OPERATORS["mul"]
_mul_apply = _mul_operator.apply


def mul(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((a.requires_grad or
            b.requires_grad or (out is not None and out.requires_grad)) and
            _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.mul.default, a, b)
        return _mul_operator.documented(a, b, out=out)
    if out is not None:
        if is_recorded:
            return _mul_operator.documented(a, b, out=out)
        versioned = _versioned("mul", out)
        _mul_out(a, b, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _mul_apply(a, b)
    return _mul(a, b)


_muladd = _operation(_ops._muladd.default)
_muladd_out = _operation(_ops._muladd_out.default)
_muladd_operator = _OPERATORS["muladd"]
_muladd_apply = _muladd_operator.apply


def muladd(a: Tensor, b: Tensor, c: float, *, out: Tensor | None =
    None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((a.requires_grad or
            b.requires_grad or (out is not None and out.requires_grad)) and
            _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.muladd.default, a, b, c)
        return _muladd_operator.documented(a, b, c, out=out)
    if out is not None:
        if is_recorded:
            return _muladd_operator.documented(a, b, c, out=out)
        versioned = _versioned("muladd", out)
        _muladd_out(a, b, c, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _muladd_apply(a, b, c)
    return _muladd(a, b, c)


_silu_mul = _operation(_ops._silu_mul.default)
_silu_mul_out = _operation(_ops._silu_mul_out.default)
_silu_mul_operator = _OPERATORS["silu_mul"]
_silu_mul_apply = _silu_mul_operator.apply


def silu_mul(gate: Tensor, up: Tensor | None = None, *, out: Tensor | None =
    None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((gate.requires_grad or (up
            is not None and up.requires_grad) or (out is not None and
            out.requires_grad)) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.silu_mul.default, gate, up)
        return _silu_mul_operator.documented(gate, up, out=out)
    if out is not None:
        if is_recorded:
            return _silu_mul_operator.documented(gate, up, out=out)
        versioned = _versioned("silu_mul", out)
        _silu_mul_out(gate, up, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _silu_mul_apply(gate, up)
    return _silu_mul(gate, up)


_gelu_mul = _operation(_ops._gelu_mul.default)
_gelu_mul_out = _operation(_ops._gelu_mul_out.default)
_gelu_mul_operator = _OPERATORS["gelu_mul"]
_gelu_mul_apply = _gelu_mul_operator.apply


def gelu_mul(gate: Tensor, up: Tensor | None = None, *, approximate: str =
    "none", out: Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((gate.requires_grad or (up
            is not None and up.requires_grad) or (out is not None and
            out.requires_grad)) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.gelu_mul.default, gate, up, approximate)
        return _gelu_mul_operator.documented(gate, up, approximate, out=out)
    if out is not None:
        if is_recorded:
            return _gelu_mul_operator.documented(gate, up, approximate, out=out)
        versioned = _versioned("gelu_mul", out)
        _gelu_mul_out(gate, up, approximate, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _gelu_mul_apply(gate, up, approximate)
    return _gelu_mul(gate, up, approximate)


_linear = _operation(_ops._linear.default)
_linear_out = _operation(_ops._linear_out.default)
_linear_operator = _OPERATORS["linear"]
_linear_apply = _linear_operator.apply


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor
    | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            weight.requires_grad or (bias is not None and bias.requires_grad) or
            (out is not None and out.requires_grad)) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.linear.default, x, weight, bias)
        return _linear_operator.documented(x, weight, bias, out=out)
    if out is not None:
        if is_recorded:
            return _linear_operator.documented(x, weight, bias, out=out)
        versioned = _versioned("linear", out)
        _linear_out(x, weight, bias, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _linear_apply(x, weight, bias)
    return _linear(x, weight, bias)


_quantize_int8_rowwise = _operation(_ops.quantize_int8_rowwise.default)
_quantize_int8_rowwise_operator = _OPERATORS["quantize_int8_rowwise"]
_quantize_int8_rowwise_apply = _quantize_int8_rowwise_operator.apply


def quantize_int8_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        _refuse_none(_ops.quantize_int8_rowwise.default, x)
    is_recorded = (_is_dynamo_compiling() or _compiler_state._is_exporting_flag)
    if is_recorded:
        return _quantize_int8_rowwise_apply(x)
    return _quantize_int8_rowwise(x)


_rms_norm = _operation(_ops._rms_norm.default)
_rms_norm_out = _operation(_ops._rms_norm_out.default)
_rms_norm_operator = _OPERATORS["rms_norm"]
_rms_norm_apply = _rms_norm_operator.apply


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, out:
    Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            (weight is not None and weight.requires_grad) or (out is not None
            and out.requires_grad)) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.rms_norm.default, x, weight, eps)
        return _rms_norm_operator.documented(x, weight, eps, out=out)
    if out is not None:
        if is_recorded:
            return _rms_norm_operator.documented(x, weight, eps, out=out)
        versioned = _versioned("rms_norm", out)
        _rms_norm_out(x, weight, eps, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _rms_norm_apply(x, weight, eps)
    return _rms_norm(x, weight, eps)


_add_rms_norm = _operation(_ops._add_rms_norm.default)
_add_rms_norm_operator = _OPERATORS["add_rms_norm"]
_add_rms_norm_apply = _add_rms_norm_operator.apply


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None = None, eps:
    float = 1e-6) -> tuple[Tensor, Tensor]:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            residual.requires_grad or (weight is not None and
            weight.requires_grad)) and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.add_rms_norm.default, x, residual, weight, eps)
        return _add_rms_norm_operator.documented(x, residual, weight, eps)
    if is_recorded:
        return _add_rms_norm_apply(x, residual, weight, eps)
    return _add_rms_norm(x, residual, weight, eps)


_add_rms_norm_ = _operation(_ops._add_rms_norm_.default)


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor | None = None,
    eps: float = 1e-6) -> None:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            residual.requires_grad or (weight is not None and
            weight.requires_grad)) and _is_grad_enabled()))
    except AttributeError:
        _refuse_none(_ops.add_rms_norm_.default, x, residual, weight, eps)
        is_recorded = True
    if is_recorded:
        _ops.add_rms_norm_.default(x, residual, weight, eps)
    else:
        versioned = _versioned("add_rms_norm_", x, residual)
        _add_rms_norm_(x, residual, weight, eps)
        _increment_version(versioned)


_rope = _operation(_ops._rope.default)
_rope_out = _operation(_ops._rope_out.default)
_rope_operator = _OPERATORS["rope"]
_rope_apply = _rope_operator.apply


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None,
    *, interleaved: bool = False, out: Tensor | None = None) -> Tensor:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            cos.requires_grad or sin.requires_grad or (positions is not None and
            positions.requires_grad) or (out is not None and out.requires_grad))
            and _is_grad_enabled()))
    except AttributeError:  # not a tensor
        _refuse_none(_ops.rope.default, x, cos, sin, positions, interleaved)
        return _rope_operator.documented(x, cos, sin, positions, interleaved,
            out=out)
    if out is not None:
        if is_recorded:
            return _rope_operator.documented(x, cos, sin, positions,
                interleaved, out=out)
        versioned = _versioned("rope", out)
        _rope_out(x, cos, sin, positions, interleaved, out)
        _increment_version(versioned)
        return out
    if is_recorded:
        return _rope_apply(x, cos, sin, positions, interleaved)
    return _rope(x, cos, sin, positions, interleaved)


_rope_ = _operation(_ops._rope_.default)


def rope_(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None,
    *, interleaved: bool = False) -> None:
    try:
        is_recorded = (_is_dynamo_compiling() or
            _compiler_state._is_exporting_flag or _transforms_are_active() or
            _forward_ad_state._current_level >= 0 or ((x.requires_grad or
            cos.requires_grad or sin.requires_grad or (positions is not None and
            positions.requires_grad)) and _is_grad_enabled()))
    except AttributeError:
        _refuse_none(_ops.rope_.default, x, cos, sin, positions, interleaved)
        is_recorded = True
    if is_recorded:
        _ops.rope_.default(x, cos, sin, positions, interleaved=interleaved)
    else:
        versioned = _versioned("rope_", x)
        _rope_(x, cos, sin, positions, interleaved)
        _increment_version(versioned)


_document(globals())
