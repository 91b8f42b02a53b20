# Generated from ops.yaml by codegen/generate.py. Do not edit.
"""What PyTorch is told about the operators beside the kernels in _C.

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
    _fake.check_out("add", result, a=a, out=out)


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
    _fake.check_out("mul", result, a=a, out=out)


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
    _fake.check_out("muladd", result, a=a, out=out)


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
    _fake.check_out("rms_norm", result, x=x, out=out)


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
    vmap=_vmap.rms_norm_backward,
    tags=["flexible_layout"],
)
