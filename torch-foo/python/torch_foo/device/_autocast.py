"""torch.autocast("foo"), with the rules that PyTorch has for CUDA.

The lists are those of ATen/autocast_mode.h, which PyTorch's headers offer to a
backend in C++ with the full ABI. Casts are not cached: a weight that is used
twice is cast twice.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NoReturn

import torch
from torch import Tensor

from torch_foo._torch_internals import (
    OpOverload,
    arguments,
    dispatch_keys,
    exclude_keys,
)
from torch_foo.device._views import overload_of

Args = tuple[Any, ...]
Named = dict[str, Any]

LOWER_PRECISION = """
    _convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc
    conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution
    prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm
    baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
    _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention
"""
FLOAT32 = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh
    tan pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm
    native_layer_norm rms_norm group_norm frobenius_norm.dim nuclear_norm
    nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss
    nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss
    soft_margin_loss triplet_margin_loss multi_margin_loss
    binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp
    upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
    upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa
"""
FLOAT32_RESULT = """
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum
    linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord sum
    sum.dim_IntList
"""
WIDEST = """
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put
    tensordot scatter_add
"""


def register(aten: torch.library.Library) -> None:
    for names, rule in (
        (LOWER_PRECISION, _lower_precision),
        (FLOAT32, _float32),
        (FLOAT32_RESULT, _float32_result),
        (WIDEST, _widest),
        ("binary_cross_entropy", _refuse_binary_cross_entropy),
        ("norm.Scalar norm.ScalarOpt_dim", _norm),
    ):
        for name in names.split():
            overload = overload_of(name)
            if overload is not None:  # a newer torch may have dropped it
                kernel = partial(_call, overload, rule)
                aten.impl(name, kernel, "AutocastPrivateUse1")


_KEY = dispatch_keys("AutocastPrivateUse1")


def _call(
    op: OpOverload, rule: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    with exclude_keys(_KEY):
        return rule(op, args, kwargs)


def _is_eligible(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.device.type == "foo"
        and x.is_floating_point()
        and x.dtype is not torch.float64
    )


def _cast(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_cast(item, dtype) for item in x)
    return x.to(dtype) if _is_eligible(x) else x


def _in(dtype: torch.dtype, op: OpOverload, args: Args, named: Named) -> Any:
    named = {name: _cast(value, dtype) for name, value in named.items()}
    return op(*_cast(args, dtype), **named)


def _lower_precision(op: OpOverload, args: Args, named: Named) -> Any:
    return _in(torch.get_autocast_dtype("foo"), op, args, named)


def _float32(op: OpOverload, args: Args, named: Named) -> Any:
    return _in(torch.float32, op, args, named)


def _float32_result(op: OpOverload, args: Args, named: Named) -> Any:
    """Let the result be float32, if the caller does not say what it is."""
    names = [argument.name for argument in arguments(op)]
    is_given = len(args) > names.index("dtype") or named.get("dtype")
    if _is_eligible(args[0]) and not is_given:
        named = {**named, "dtype": torch.float32}
    return op(*args, **named)


def _widest(op: OpOverload, args: Args, named: Named) -> Any:
    tensors = [x for a in args for x in (a if isinstance(a, list) else [a])]
    dtypes = {x.dtype for x in filter(_is_eligible, tensors)}
    lowest = torch.get_autocast_dtype("foo")
    return _in(reduce(torch.promote_types, dtypes, lowest), op, args, named)


def _norm(op: OpOverload, args: Args, named: Named) -> Any:
    """Call the overload that has a dtype, and no defaults."""
    if not _is_eligible(args[0]):
        return op(*args, **named)
    defaults = [a.default_value for a in arguments(op)[len(args) :]]
    return torch.ops.aten.norm(*args, *defaults, dtype=torch.float32)


def _refuse_binary_cross_entropy(op: OpOverload, *_: Any) -> NoReturn:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are "
        "unsafe to autocast; use binary_cross_entropy_with_logits or "
        "BCEWithLogitsLoss, which are safe"
    )
