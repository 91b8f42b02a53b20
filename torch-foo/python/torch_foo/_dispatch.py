# Generated from ops.yaml by codegen/generate.py. Do not edit.
"""What PyTorch is told about the operators beside their kernels.

For each: what it makes of tensors without data, its gradients, and its rules
for vmap and autocast.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: RUF059

from torch_foo import _autograd, _derivatives, _fake, _register, _vmap

# --- add ---------------------------------------------------------------------


def _add_fake(a, b):
    return _fake.broadcast("add", a, b)


def _add_fake_out(a, b, out=None):
    result = _add_fake(a, b)
    _fake._check_out("add", result, a=a, out=out)


def _add_save(ctx, inputs, output):
    a, b = inputs
    ctx.a_shape = a.shape
    ctx.b_shape = b.shape


def _add_backward(ctx, grad):
    wants_a, wants_b = ctx.needs_input_grad[:2]
    grad_of_a = _derivatives.reduced(grad, ctx.a_shape) if wants_a else None
    grad_of_b = _derivatives.reduced(grad, ctx.b_shape) if wants_b else None
    return (
        grad_of_a,
        grad_of_b,
    )


add = _autograd.differentiable("add", _add_save, _add_backward, _vmap.broadcast)
_register.register(
    "add",
    has_raw=True,
    fake=_add_fake,
    fake_out=_add_fake_out,
    vmap=_vmap.broadcast,
    autocast=_register.promote,
    tags=["pointwise", "flexible_layout"],
)

# --- mul ---------------------------------------------------------------------


def _mul_fake(a, b):
    return _fake.broadcast("mul", a, b)


def _mul_fake_out(a, b, out=None):
    result = _mul_fake(a, b)
    _fake._check_out("mul", result, a=a, out=out)


def _mul_save(ctx, inputs, output):
    a, b = inputs
    ctx.a_shape = a.shape
    ctx.b_shape = b.shape
    wants_a, wants_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(b if wants_a else None, a if wants_b else None)


def _mul_backward(ctx, grad):
    wants_a, wants_b = ctx.needs_input_grad[:2]
    b, a = ctx.saved_tensors
    grad_of_a = _derivatives.product(grad, b, ctx.a_shape) if wants_a else None
    grad_of_b = _derivatives.product(grad, a, ctx.b_shape) if wants_b else None
    return (
        grad_of_a,
        grad_of_b,
    )


mul = _autograd.differentiable("mul", _mul_save, _mul_backward, _vmap.broadcast)
_register.register(
    "mul",
    has_raw=True,
    fake=_mul_fake,
    fake_out=_mul_fake_out,
    vmap=_vmap.broadcast,
    autocast=_register.promote,
    tags=["pointwise", "flexible_layout"],
)

# --- muladd ------------------------------------------------------------------


def _muladd_fake(a, b, c):
    return _fake.broadcast("muladd", a, b)


def _muladd_fake_out(a, b, c, out=None):
    result = _muladd_fake(a, b, c)
    _fake._check_out("muladd", result, a=a, out=out)


def _muladd_save(ctx, inputs, output):
    a, b, c = inputs
    ctx.a_shape = a.shape
    ctx.b_shape = b.shape
    wants_a, wants_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(b if wants_a else None, a if wants_b else None)


def _muladd_backward(ctx, grad):
    wants_a, wants_b = ctx.needs_input_grad[:2]
    b, a = ctx.saved_tensors
    grad_of_a = _derivatives.product(grad, b, ctx.a_shape) if wants_a else None
    grad_of_b = _derivatives.product(grad, a, ctx.b_shape) if wants_b else None
    return (
        grad_of_a,
        grad_of_b,
        None,
    )


muladd = _autograd.differentiable(
    "muladd", _muladd_save, _muladd_backward, _vmap.broadcast
)
_register.register(
    "muladd",
    has_raw=True,
    fake=_muladd_fake,
    fake_out=_muladd_fake_out,
    vmap=_vmap.broadcast,
    autocast=_register.promote,
    tags=["pointwise", "flexible_layout"],
)

# --- rms_norm ----------------------------------------------------------------


def _rms_norm_fake(x, weight=None, eps=1e-6):
    return _fake.rms_norm("rms_norm", x, weight)


def _rms_norm_fake_out(x, weight=None, eps=1e-6, out=None):
    result = _rms_norm_fake(x, weight, eps)
    _fake._check_out("rms_norm", result, x=x, out=out)


def _rms_norm_save(ctx, inputs, output):
    x, weight, eps = inputs
    ctx.eps = eps
    ctx.save_for_backward(x, weight)


def _rms_norm_backward(ctx, grad):
    wants_x, wants_weight = (*ctx.needs_input_grad, False, False)[:2]
    x, weight = ctx.saved_tensors
    grad_of_x, grad_of_weight = _derivatives.rms_norm(
        grad, x, weight, ctx.eps, wants_x, wants_weight
    )
    return (
        grad_of_x,
        grad_of_weight,
        None,
    )


rms_norm = _autograd.differentiable(
    "rms_norm", _rms_norm_save, _rms_norm_backward, _vmap.rms_norm
)
_register.register(
    "rms_norm",
    has_raw=True,
    fake=_rms_norm_fake,
    fake_out=_rms_norm_fake_out,
    vmap=_vmap.rms_norm,
    autocast=_register.promote,
    tags=["flexible_layout"],
)

# --- _rms_norm_backward ------------------------------------------------------


def __rms_norm_backward_fake(grad, x, weight, eps, wants_x, wants_weight):
    return _fake.rms_norm_backward(
        "_rms_norm_backward", grad, x, weight, wants_x, wants_weight
    )


_register.register(
    "_rms_norm_backward",
    has_raw=False,
    fake=__rms_norm_backward_fake,
    vmap=_vmap.one_by_one,
    tags=["flexible_layout"],
)

# --- add_rms_norm ------------------------------------------------------------


def _add_rms_norm_fake(x, residual, weight=None, eps=1e-6):
    return _fake.add_rms_norm("add_rms_norm", x, residual, weight)


def _add_rms_norm_save(ctx, inputs, output):
    x, residual, weight, eps = inputs
    y, residual_out = output
    ctx.eps = eps
    ctx.save_for_backward(residual_out, weight)


def _add_rms_norm_backward(ctx, grad_y, grad_residual_out):
    wants_x, wants_residual, wants_weight = (
        *ctx.needs_input_grad,
        False,
        False,
        False,
    )[:3]
    residual_out, weight = ctx.saved_tensors
    grad_of_x, grad_of_residual, grad_of_weight = _derivatives.add_rms_norm(
        grad_y,
        grad_residual_out,
        residual_out,
        weight,
        ctx.eps,
        wants_x,
        wants_residual,
        wants_weight,
    )
    return (
        grad_of_x,
        grad_of_residual,
        grad_of_weight,
        None,
    )


add_rms_norm = _autograd.differentiable(
    "add_rms_norm",
    _add_rms_norm_save,
    _add_rms_norm_backward,
    _vmap.add_rms_norm,
)
_register.register(
    "add_rms_norm",
    has_raw=True,
    fake=_add_rms_norm_fake,
    written=["x", "residual"],
    vmap=_vmap.add_rms_norm,
    autocast=_register.promote,
    tags=["flexible_layout"],
)

# --- _add_rms_norm_backward --------------------------------------------------


def __add_rms_norm_backward_fake(
    grad, grad_residual, residual_out, weight, eps, wants_x, wants_weight
):
    return _fake.add_rms_norm_backward(
        "_add_rms_norm_backward",
        grad,
        grad_residual,
        residual_out,
        weight,
        wants_x,
        wants_weight,
    )


_register.register(
    "_add_rms_norm_backward",
    has_raw=False,
    fake=__add_rms_norm_backward_fake,
    vmap=_vmap.one_by_one,
    tags=["flexible_layout"],
)

# --- linear ------------------------------------------------------------------


def _linear_fake(x, weight, bias=None):
    return _fake.linear("linear", x, weight, bias)


def _linear_fake_out(x, weight, bias=None, out=None):
    result = _linear_fake(x, weight, bias)
    _fake._check_out("linear", result, x=x, out=out)


def _linear_save(ctx, inputs, output):
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)


def _linear_backward(ctx, grad):
    wants_x, wants_weight, wants_bias = (
        *ctx.needs_input_grad,
        False,
        False,
        False,
    )[:3]
    x, weight = ctx.saved_tensors
    grad_of_x, grad_of_weight, grad_of_bias = _derivatives.linear(
        grad, x, weight, wants_x, wants_weight, wants_bias
    )
    return (
        grad_of_x,
        grad_of_weight,
        grad_of_bias,
    )


linear = _autograd.differentiable(
    "linear", _linear_save, _linear_backward, _vmap.linear
)
_register.register(
    "linear",
    has_raw=True,
    fake=_linear_fake,
    fake_out=_linear_fake_out,
    vmap=_vmap.linear,
    autocast=_register.promote,
    tags=["flexible_layout"],
)

# --- silu_mul ----------------------------------------------------------------


def _silu_mul_fake(gate, up=None):
    return _fake.gated("silu_mul", gate, up)


def _silu_mul_fake_out(gate, up=None, out=None):
    result = _silu_mul_fake(gate, up)
    _fake._check_out("silu_mul", result, gate=gate, out=out)


def _silu_mul_save(ctx, inputs, output):
    gate, up = inputs
    ctx.save_for_backward(gate, up)


def _silu_mul_backward(ctx, grad):
    wants_gate, wants_up = (*ctx.needs_input_grad, False, False)[:2]
    gate, up = ctx.saved_tensors
    grad_of_gate, grad_of_up = _derivatives.silu_mul(
        grad, gate, up, wants_gate, wants_up
    )
    return (
        grad_of_gate,
        grad_of_up,
    )


silu_mul = _autograd.differentiable(
    "silu_mul", _silu_mul_save, _silu_mul_backward, _vmap.gated
)
_register.register(
    "silu_mul",
    has_raw=True,
    fake=_silu_mul_fake,
    fake_out=_silu_mul_fake_out,
    vmap=_vmap.gated,
    autocast=_register.promote,
    tags=["pointwise", "flexible_layout"],
)

# --- _silu_mul_backward ------------------------------------------------------


def __silu_mul_backward_fake(grad, gate, up, wants_gate, wants_up):
    return _fake.gated_backward(
        "_silu_mul_backward", grad, gate, up, wants_gate, wants_up
    )


_register.register(
    "_silu_mul_backward",
    has_raw=False,
    fake=__silu_mul_backward_fake,
    vmap=_vmap.one_by_one,
    tags=["pointwise", "flexible_layout"],
)

# --- gelu_mul ----------------------------------------------------------------


def _gelu_mul_fake(gate, up=None, approximate="none"):
    return _fake.gelu_mul("gelu_mul", gate, up, approximate)


def _gelu_mul_fake_out(gate, up=None, approximate="none", out=None):
    result = _gelu_mul_fake(gate, up, approximate)
    _fake._check_out("gelu_mul", result, gate=gate, out=out)


def _gelu_mul_save(ctx, inputs, output):
    gate, up, approximate = inputs
    ctx.approximate = approximate
    ctx.save_for_backward(gate, up)


def _gelu_mul_backward(ctx, grad):
    wants_gate, wants_up = (*ctx.needs_input_grad, False, False)[:2]
    gate, up = ctx.saved_tensors
    grad_of_gate, grad_of_up = _derivatives.gelu_mul(
        grad, gate, up, ctx.approximate, wants_gate, wants_up
    )
    return (
        grad_of_gate,
        grad_of_up,
        None,
    )


gelu_mul = _autograd.differentiable(
    "gelu_mul", _gelu_mul_save, _gelu_mul_backward, _vmap.gated
)
_register.register(
    "gelu_mul",
    has_raw=True,
    fake=_gelu_mul_fake,
    fake_out=_gelu_mul_fake_out,
    vmap=_vmap.gated,
    autocast=_register.promote,
    tags=["pointwise", "flexible_layout"],
)

# --- _gelu_mul_backward ------------------------------------------------------


def __gelu_mul_backward_fake(grad, gate, up, approximate, wants_gate, wants_up):
    return _fake.gelu_mul_backward(
        "_gelu_mul_backward", grad, gate, up, approximate, wants_gate, wants_up
    )


_register.register(
    "_gelu_mul_backward",
    has_raw=False,
    fake=__gelu_mul_backward_fake,
    vmap=_vmap.one_by_one,
    tags=["pointwise", "flexible_layout"],
)

# --- rope --------------------------------------------------------------------


def _rope_fake(x, cos, sin, positions=None, interleaved=False):
    return _fake.rope("rope", x, cos, sin, positions)


def _rope_fake_out(x, cos, sin, positions=None, interleaved=False, out=None):
    result = _rope_fake(x, cos, sin, positions, interleaved)
    _fake._check_out("rope", result, x=x, out=out)


def _rope_save(ctx, inputs, output):
    x, cos, sin, positions, interleaved = inputs
    ctx.interleaved = interleaved
    ctx.save_for_backward(cos, sin, positions)


def _rope_backward(ctx, grad):
    (wants_x,) = (*ctx.needs_input_grad, False)[:1]
    cos, sin, positions = ctx.saved_tensors
    grad_of_x = (
        _derivatives.rope(grad, cos, sin, positions, ctx.interleaved)
        if wants_x
        else None
    )
    return (
        grad_of_x,
        None,
        None,
        None,
        None,
    )


rope = _autograd.differentiable("rope", _rope_save, _rope_backward, _vmap.rope)
_register.register(
    "rope",
    has_raw=True,
    fake=_rope_fake,
    fake_out=_rope_fake_out,
    written=["x"],
    vmap=_vmap.rope,
    tags=["flexible_layout"],
)

# --- _rope_backward ----------------------------------------------------------


def __rope_backward_fake(grad, cos, sin, positions, interleaved):
    return _fake.rope("_rope_backward", grad, cos, sin, positions)


_register.register(
    "_rope_backward",
    has_raw=False,
    fake=__rope_backward_fake,
    vmap=_vmap.rope,
    tags=["flexible_layout"],
)

# --- cross_entropy -----------------------------------------------------------


def _cross_entropy_fake(
    logits, target, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    return _fake.cross_entropy(
        "cross_entropy", logits, target, reduction, label_smoothing
    )


def _cross_entropy_save(ctx, inputs, output):
    logits, target, ignore_index, reduction, label_smoothing = inputs
    loss, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.ignore_index = ignore_index
    ctx.reduction = reduction
    ctx.label_smoothing = label_smoothing
    ctx.save_for_backward(logits, target, lse)


def _cross_entropy_backward(ctx, grad_loss, grad_lse):
    (wants_logits,) = (*ctx.needs_input_grad, False)[:1]
    logits, target, lse = ctx.saved_tensors
    grad_of_logits = (
        _derivatives.cross_entropy(
            grad_loss,
            logits,
            target,
            lse,
            ctx.ignore_index,
            ctx.reduction,
            ctx.label_smoothing,
        )
        if wants_logits
        else None
    )
    return (
        grad_of_logits,
        None,
        None,
        None,
        None,
    )


cross_entropy = _autograd.differentiable(
    "cross_entropy",
    _cross_entropy_save,
    _cross_entropy_backward,
    _vmap.cross_entropy,
)
_register.register(
    "cross_entropy",
    has_raw=True,
    fake=_cross_entropy_fake,
    vmap=_vmap.cross_entropy,
    tags=["flexible_layout"],
)

# --- _cross_entropy_backward -------------------------------------------------


def __cross_entropy_backward_fake(
    grad, logits, target, lse, ignore_index, reduction, label_smoothing
):
    return _fake.cross_entropy_backward(
        "_cross_entropy_backward", grad, logits, target, lse, reduction
    )


_register.register(
    "_cross_entropy_backward",
    has_raw=False,
    fake=__cross_entropy_backward_fake,
    vmap=_vmap.one_by_one,
    tags=["flexible_layout"],
)

# --- quantize_int8_rowwise ---------------------------------------------------


def _quantize_int8_rowwise_fake(x):
    return _fake.quantize_int8_rowwise("quantize_int8_rowwise", x)


_register.register(
    "quantize_int8_rowwise",
    has_raw=False,
    fake=_quantize_int8_rowwise_fake,
    is_constant=True,
    vmap=_vmap.quantize_int8_rowwise,
    tags=["flexible_layout"],
)
