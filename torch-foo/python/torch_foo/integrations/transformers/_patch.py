"""Replace the forward methods and the loss of a model, and undo it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from torch_foo.integrations.transformers import _forwards, _recognize
from torch_foo.integrations.transformers._recognize import Target, class_of
from torch_foo.integrations.transformers._report import Report

# The attribute of a replacement that holds what it replaces.
_REPLACES = "_torch_foo_replaces"


def patch(
    model_or_class: nn.Module | type[nn.Module],
    *,
    rms_norm: bool = True,
    mlp: bool = True,
    rope: bool = True,
    cross_entropy: bool = True,
    linear: bool = True,
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

    Returns:
        What was replaced, and what was left alone and why. If nothing was
        replaced, the report is false and a warning is issued.

    Raises:
        TypeError: The argument is neither a module nor a class of modules.
    """
    _check("patch", model_or_class)
    report = Report(class_of(model_or_class).__name__)
    targets = list(_targets(model_or_class))
    wanted = {
        "rms_norm": rms_norm,
        "mlp": mlp,
        "rope": rope,
        "linear": linear and any(map(_is_known, targets)),
    }
    for target in targets:
        for replacement in _REPLACEMENTS:
            if wanted[replacement.kind] and replacement.is_candidate(
                class_of(target)
            ):
                _replace(target, replacement, report)
        if cross_entropy:
            _replace_loss(target, report)
    if not report:
        warnings.warn(f"torch_foo: {report}", stacklevel=2)
    return report


def unpatch(model_or_class: nn.Module | type[nn.Module]) -> int:
    """Undo :func:`patch` on the same model or class.

    Returns:
        The number of replacements undone. If it is 0, a warning is issued.

    Raises:
        TypeError: The argument is neither a module nor a class of modules.
    """
    _check("unpatch", model_or_class)
    changes = sum(_restore(target) for target in _targets(model_or_class))
    if not changes:
        warnings.warn(
            f"torch_foo: {class_of(model_or_class).__name__} is not patched, "
            "so there is nothing to undo",
            stacklevel=2,
        )
    return changes


@dataclass(frozen=True)
class _Replacement:
    kind: str
    is_candidate: Callable[[type[nn.Module]], bool]
    refuse: Callable[[Target], str | None]
    make: Callable[[Any], Callable[..., Any]]


_REPLACEMENTS = (
    _Replacement(
        "rms_norm",
        lambda cls: cls.__name__.endswith("RMSNorm"),
        _recognize.refuse_norm,
        _forwards.rms_norm_forward,
    ),
    _Replacement(
        "mlp",
        lambda cls: cls.__name__.endswith("MLP"),
        _recognize.refuse_mlp,
        _forwards.mlp_forward,
    ),
    _Replacement(
        "rope",
        _recognize.rotates,
        _recognize.refuse_attention,
        _forwards.attention_forward,
    ),
    _Replacement(
        "linear",
        lambda cls: cls is nn.Linear,
        _recognize.refuse_weight,
        _forwards.linear_forward,
    ),
)


def _is_known(target: Target) -> bool:
    """Whether it is like a module of Llama's, which nn.Linear is not."""
    cls = class_of(target)
    return any(
        replacement.is_candidate(cls) and not replacement.refuse(target)
        for replacement in _REPLACEMENTS
        if replacement.kind != "linear"
    )


def _check(function: str, model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        return
    raise TypeError(
        f"torch_foo.integrations.transformers.{function}: model_or_class is "
        f"{model!r}, expected a torch.nn.Module or a class of them"
    )


def _targets(model: Target) -> Iterator[Target]:
    """Yield the modules of a model, or the classes in its class's source."""
    if isinstance(model, nn.Module):
        yield from model.modules()
        return
    for value in vars(sys.modules[model.__module__]).values():
        if (
            isinstance(value, type)
            and issubclass(value, nn.Module)
            and value.__module__ == model.__module__
        ):
            yield value


def _replace(target: Target, replacement: _Replacement, report: Report) -> None:
    cls = class_of(target)
    own = vars(target).get("forward")
    if not (hasattr(own, _REPLACES) or hasattr(cls.forward, _REPLACES)):
        reason = replacement.refuse(target)
        if reason is None and own is not None and target is not cls:
            reason = "its forward was already replaced by another library"
        if reason is not None:
            report.left[cls.__name__, reason] += 1
            return
        forward = functools.update_wrapper(
            replacement.make(cls.forward), cls.forward
        )
        setattr(forward, _REPLACES, cls.forward)
        target.forward = (
            forward if target is cls else MethodType(forward, target)
        )
    report.replaced[replacement.kind, cls.__name__] += 1


def _replace_loss(target: Any, report: Report) -> None:
    cls = class_of(target)
    is_class, name = target is cls, cls.__name__
    if is_class:
        if not name.endswith("ForCausalLM"):
            return
        if not hasattr(target.loss_function.fget, _REPLACES):
            target.loss_function = _loss_property(target.loss_function)
    elif getattr(target, "loss_type", None) != "ForCausalLM":
        return
    elif target.loss_function is ForCausalLMLoss:
        target.loss_function = _forwards.causal_lm_loss
    elif target.loss_function is not _forwards.causal_lm_loss:
        found = getattr(target.loss_function, "__name__", "something else")
        reason = f"its loss function is {found}, expected ForCausalLMLoss"
        report.left[name, reason] += 1
        return
    report.replaced["cross_entropy", name] += 1


def _loss_property(inherited: Any) -> property:
    def loss_function(self: Any) -> Callable[..., Tensor]:
        chosen: Callable[..., Tensor] = inherited.fget(self)
        return _forwards.causal_lm_loss if chosen is ForCausalLMLoss else chosen

    setattr(loss_function, _REPLACES, inherited)
    return property(loss_function, inherited.fset)


def _restore(target: Any) -> int:
    """Undo what patch did to a target; return the number of changes."""
    is_class, changes = isinstance(target, type), 0
    original = getattr(vars(target).get("forward"), _REPLACES, None)
    if original is not None:
        if is_class:
            target.forward = original
        else:
            del target.forward
        changes += 1
    if is_class:
        own = vars(target).get("loss_function")
        if hasattr(getattr(own, "fget", None), _REPLACES):
            del target.loss_function
            changes += 1
    elif vars(target).get("_loss_function") is _forwards.causal_lm_loss:
        del target._loss_function
        changes += 1
    return changes
