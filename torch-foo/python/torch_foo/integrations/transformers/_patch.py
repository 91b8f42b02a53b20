"""Let models compute with torch_foo, and undo it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from torch_foo.integrations.transformers import _recognize
from torch_foo.integrations.transformers._cache import CACHE_DTYPES
from torch_foo.integrations.transformers._forwards import causal_lm_loss
from torch_foo.integrations.transformers._join import join_weights
from torch_foo.integrations.transformers._quantize import (
    Rule,
    quantize_weights,
    restore_weights,
)
from torch_foo.integrations.transformers._recognize import Target, class_of
from torch_foo.integrations.transformers._replace import (
    REPLACEMENTS,
    replace_forward,
    restore_forward,
)
from torch_foo.integrations.transformers._report import Report


def patch(
    model_or_class: nn.Module | type[nn.Module],
    *,
    rms_norm: bool = True,
    mlp: bool = True,
    rope: bool = True,
    cross_entropy: bool = True,
    linear: bool = True,
    decode: bool = True,
    weights: Rule | None = None,
    keep: bool = False,
    cache_dtype: torch.dtype | None = None,
) -> Report:
    """Let a model, or all models of a class, compute with torch_foo.

    Training, gradient checkpointing, torch.compile and generation work as
    before. Patching again changes nothing.

    Args:
        model_or_class: A model of transformers, such as a LlamaForCausalLM, or
            its class. A class stands for all classes of modules in its source
            file, and patches existing models too.
        rms_norm: Whether to replace the norms by :func:`torch_foo.rms_norm`.
        mlp: Whether to replace the product in gated feed-forward blocks by
            :func:`torch_foo.silu_mul` or :func:`torch_foo.gelu_mul`.
        rope: Whether to replace the rotation of queries and keys by
            :func:`torch_foo.rope`.
        cross_entropy: Whether to replace the loss computed from `labels` by
            :func:`torch_foo.cross_entropy`, which keeps no log-probabilities.
        linear: Whether to replace products of weights with few rows on the
            CPU, as in text generation, by :func:`torch_foo.linear`. This
            concerns the torch.nn.Linear modules of a model, so it has no effect
            on a class.
        decode: Whether to compute all layers of a generated token, for up to 16
            sequences on the CPU, in one operator. This needs all of `rms_norm`,
            `mlp`, `rope` and `linear`, and concerns models, not classes. The
            weights of queries, keys and values become neighbours in memory, as
            do those of gate and up. Where something observes the inside of a
            layer, as hooks and gradients do, the layer computes as without
            this.
        weights: The format to quantize weights to, as in
            :func:`torch_foo.quantize`, such as "q8_0"; or a dict of formats by
            name of module, such as ``{"lm_head": "q6_k", "*.mlp.*": "q4_0"}``,
            of which the first that matches counts. The names are those of
            ``model.named_modules()``, whose first parts may be missing. Linear
            layers and embeddings on the CPU become
            :class:`torch_foo.nn.QuantizedLinear` and
            :class:`torch_foo.nn.QuantizedEmbedding`, which are not trained.
            Modules that share a weight, as a head and an embedding do where
            they are tied, get the same format. None quantizes nothing.
        keep: Whether to keep the float weights beside the quantized ones, for
            :func:`unpatch` and other formats. Without this, they are gone.
        cache_dtype: The dtype of the keys and values that `decode` appends to a
            cache, where the model computes in float32: torch.float32, or
            torch.float16 or torch.bfloat16, which take half of the memory and
            of the time to read. None is float16 if the weights of all layers
            are quantized, and float32 if not.

    Returns:
        What was replaced, and what was left alone and why. If nothing was
        replaced, the report is false and a warning is issued.

    Raises:
        TypeError: The argument is neither a module nor a class of modules, or
            is a class although there are `weights`; or `weights` is neither a
            format nor a dict of formats.
        ValueError: `weights` is empty, or has an unknown format, a name that
            no linear layer or embedding has, or two formats for modules that
            share a weight; `keep` is true without `weights`; or `cache_dtype`
            is another dtype than these.
    """
    _check("patch", model_or_class)
    report = Report(class_of(model_or_class).__name__)
    if keep and weights is None:
        raise ValueError(
            "torch_foo.integrations.transformers.patch: keep is for weights "
            "that are quantized, and weights is None"
        )
    if cache_dtype not in (None, *CACHE_DTYPES):
        raise ValueError(
            "torch_foo.integrations.transformers.patch: cache_dtype is "
            f"{cache_dtype!r}, expected None, torch.float32, torch.float16 or "
            "torch.bfloat16"
        )
    if weights is not None:
        if isinstance(model_or_class, type):
            raise TypeError(
                "torch_foo.integrations.transformers.patch: weights needs a "
                f"model, not the class {model_or_class.__name__}"
            )
        quantize_weights(model_or_class, weights, keep, report)
    targets = list(_targets(model_or_class))
    classes = {class_of(target) for target in targets}
    wanted = {"rms_norm": rms_norm, "mlp": mlp, "rope": rope, "linear": linear}
    wanted["decode"] = decode and all(wanted.values())
    wanted["decode_model"] = False  # before its layers are replaced
    is_known = any(
        kind not in ("linear", "decode", "decode_model")
        and REPLACEMENTS[kind].resembles(target)
        and not REPLACEMENTS[kind].refuse(target, classes)
        for kind in REPLACEMENTS
        for target in targets
    )
    for target in targets:
        for kind, replacement in REPLACEMENTS.items():
            if not wanted[kind] or not replacement.resembles(target):
                continue
            reason = replacement.refuse(target, classes)
            if kind == "linear" and not (reason or is_known):
                reason = "no other module of the model is like one of Llama's"
            option = cache_dtype if kind == "decode" else None
            reason = reason or replace_forward(target, kind, option)
            if kind == "decode" and not reason:
                join_weights(target)
            _note(report, kind, target, reason)
        if cross_entropy and _recognize.resembles_loss(target):
            reason = _replace_loss(target)
            _note(report, "cross_entropy", target, reason)
    for target in targets if wanted["decode"] else ():
        if _recognize.resembles_model(target):
            reason = _recognize.refuse_model(class_of(target))
            reason = reason or replace_forward(
                target, "decode_model", cache_dtype
            )
            _note(report, "decode", target, reason)
    if not report:
        warnings.warn(f"torch_foo: {report}", stacklevel=2)
    return report


def unpatch(model_or_class: nn.Module | type[nn.Module]) -> int:
    """Undo :func:`patch` on the same model or class.

    Quantized weights stay, with a warning, unless patch() was told to keep the
    float ones.

    Returns:
        The number of replacements undone. If it is 0, a warning is issued.

    Raises:
        TypeError: The argument is neither a module nor a class of modules.
    """
    _check("unpatch", model_or_class)
    changes = sum(
        restore_forward(target) + _restore_loss(target)
        for target in _targets(model_or_class)
    )
    if isinstance(model_or_class, nn.Module):
        restored, gone = restore_weights(model_or_class)
        changes += restored
        if gone:
            warnings.warn(
                f"torch_foo: {gone} modules of "
                f"{type(model_or_class).__name__} stay quantized, because "
                "their float weights are gone; patch(..., keep=True) keeps "
                "them",
                stacklevel=2,
            )
    if not changes:
        warnings.warn(
            f"torch_foo: {class_of(model_or_class).__name__} is not patched, "
            "so there is nothing to undo",
            stacklevel=2,
        )
    return changes


def _check(function: str, model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        return
    raise TypeError(
        f"torch_foo.integrations.transformers.{function}: model_or_class is "
        f"{model!r}, expected a torch.nn.Module or a class of them"
    )


def _targets(model: Target) -> Iterable[Target]:
    """Return the modules of a model, or the classes in its class's source."""
    if isinstance(model, nn.Module):
        return model.modules()
    return _recognize.classes_beside(model)


def _note(
    report: Report, kind: str, target: Target, reason: str | None
) -> None:
    name = class_of(target).__name__
    if reason is None:
        report.replaced[kind, name] += 1
    else:
        report.left[name, reason] += 1


# --- the loss ---------------------------------------------------------------


# transformers chooses the loss of a class by the end of its name.
_CAUSAL = ("ForCausalLM", "ForConditionalGeneration")


def _replace_loss(target: Any) -> str | None:
    """Replace the loss of a model or a class; or return why not."""
    cls = class_of(target)
    if not _recognize.calls_loss_function(cls):
        return "it does not call its loss_function"
    if target is cls:
        if not cls.__name__.endswith(_CAUSAL):
            return f"its name ends with none of {', '.join(_CAUSAL)}"
        if not _is_ours(target.loss_function):
            target.loss_function = _loss_property(target.loss_function)
        return None
    if getattr(target, "loss_type", None) is None:
        return "it has no loss_type, expected ForCausalLM"
    if target.loss_function is ForCausalLMLoss:
        target.loss_function = causal_lm_loss
    if target.loss_function is causal_lm_loss:
        return None
    found = getattr(target.loss_function, "__name__", "something else")
    return f"its loss function is {found}, expected ForCausalLMLoss"


def _loss_property(inherited: Any) -> property:
    def loss_function(self: Any) -> Callable[..., Tensor]:
        chosen: Callable[..., Tensor] = inherited.fget(self)
        return causal_lm_loss if chosen is ForCausalLMLoss else chosen

    return property(loss_function, inherited.fset)


def _is_ours(attribute: Any) -> bool:
    getter = getattr(attribute, "fget", None)
    return getattr(getter, "__module__", None) == __name__


def _restore_loss(target: Any) -> bool:
    if target is class_of(target):
        if _is_ours(vars(target).get("loss_function")):
            del target.loss_function
            return True
    elif vars(target).get("_loss_function") is causal_lm_loss:
        del target._loss_function
        return True
    return False
