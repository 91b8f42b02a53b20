"""Replace the forward of a module or a class, and undo it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn

from torch_foo.integrations.transformers import (
    _decode,
    _forwards,
    _recognize,
)
from torch_foo.integrations.transformers._recognize import (
    MARK,
    Target,
    class_of,
    forward_of,
)


@dataclass(frozen=True)
class Replacement:
    """How to replace a kind of modules."""

    resembles: Callable[[Target], bool]
    #: Why a class cannot be replaced, and more reasons, which depend on a
    #: module or on the classes in its model.
    refuse_class: Callable[[type[nn.Module]], str | None]
    refuse_more: Callable[[Target, Collection[type[nn.Module]]], str | None]
    make: Callable[[Any], Callable[..., Any]]

    def refuse(
        self, target: Target, classes: Collection[type[nn.Module]]
    ) -> str | None:
        return self.refuse_class(class_of(target)) or self.refuse_more(
            target, classes
        )


REPLACEMENTS = {
    "rms_norm": Replacement(
        _recognize.resembles_norm,
        _recognize.refuse_norm,
        _recognize.refuse_weight,
        _forwards.rms_norm_forward,
    ),
    "mlp": Replacement(
        _recognize.resembles_mlp,
        _recognize.refuse_mlp,
        _recognize.refuse_activation,
        _forwards.mlp_forward,
    ),
    "rope": Replacement(
        _recognize.resembles_attention,
        _recognize.refuse_rotation,
        _recognize.refuse_tables,
        _forwards.attention_forward,
    ),
    "linear": Replacement(
        _recognize.resembles_linear,
        _recognize.refuse_linear,
        _recognize.refuse_weight,
        _forwards.linear_forward,
    ),
    "decode": Replacement(
        _recognize.resembles_layer,
        _recognize.refuse_layer,
        _recognize.refuse_step,
        _decode.layer_forward,
    ),
    "decode_model": Replacement(
        _recognize.resembles_model,
        _recognize.refuse_model,
        lambda *_: None,
        _decode.model_forward,
    ),
}


class Mark:
    """What patch() did to a module or a class, in its attribute `MARK`.

    A module has its mark before its new `forward`, a bound method, which pickle
    saves by name alone. A mark that is loaded replaces the module's `forward`
    again, and then that name stands for the new one.
    """

    def __init__(self, target: Target, kind: str, option: Any = None) -> None:
        cls = class_of(target)
        self.target = target
        self.kind = kind
        self.enabled = True
        #: What patch() was told about this kind.
        self.option = option
        #: What the new forward has prepared for later calls.
        self.prepared: Any = None
        self.original = forward_of(cls)
        self.inherited = "forward" not in vars(cls)
        self.forward = (
            _class_forward(self)
            if target is cls
            else _module_forward(kind, self.original)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.target, self.kind, self.enabled, self.option)

    def is_in_place(self) -> bool:
        """Whether `forward` is the new one, and not another library's."""
        own = vars(self.target).get("forward")
        return getattr(own, "__func__", own) is self.forward


def replace_forward(target: Any, kind: str, option: Any = None) -> str | None:
    """Replace the forward of a module or a class; or return why not."""
    cls = class_of(target)
    mark = vars(target).get(MARK)
    if mark is not None and (target is cls or not _is_untouched(target)):
        mark.enabled = True  # another library may call it
        mark.option = option
    elif target is cls:
        _put(Mark(target, kind, option))
    elif forward_of(cls) is not cls.forward:
        pass  # the class is patched
    elif _is_untouched(target):
        _put(Mark(target, kind, option))
    else:
        return "its forward was already replaced by another library"
    return None


def restore_forward(target: Any) -> bool:
    """Undo replace_forward; return whether there was anything to undo.

    What another library has put around the new forward stays, and then calls
    the original.
    """
    mark = vars(target).get(MARK)
    if mark is None:
        return False
    was_enabled: bool = mark.enabled
    mark.enabled = False
    if mark.is_in_place() or _is_untouched(target):
        delattr(target, MARK)
        if target is class_of(target):
            if mark.inherited:
                del target.forward
            else:
                target.forward = mark.original
        else:
            vars(target).pop("forward", None)
            vars(target).pop("_replicate_for_data_parallel", None)
    return was_enabled


def _is_untouched(target: Any) -> bool:
    """Whether the forward of a module is that of its class.

    It may be bound to the module all the same: that is what pickle makes of a
    bound method.
    """
    own = vars(target).get("forward")
    return not isinstance(target, type) and (
        own is None or getattr(own, "__func__", None) is type(target).forward
    )


def _put(mark: Mark) -> None:
    target: Any = mark.target
    if target is class_of(target):
        setattr(target, MARK, mark)
        target.forward = mark.forward
    else:  # which may not be initialized yet
        vars(target)[MARK] = mark
        for method in (mark.forward, _replicate_for_data_parallel):
            vars(target)[method.__name__] = MethodType(method, target)


def _load(
    module: nn.Module, kind: str, enabled: bool, option: Any
) -> Mark | None:
    """Replace the forward of a module of which only the class is known yet."""
    if REPLACEMENTS[kind].refuse_class(type(module)):
        return None  # this version of transformers computes something else
    mark = Mark(module, kind, option)
    mark.enabled = enabled
    _put(mark)
    return mark


@functools.cache  # torch.compile shares code among modules of the same forward
def _module_forward(kind: str, original: Any) -> Callable[..., Any]:
    compute = REPLACEMENTS[kind].make(original)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Another library may have changed the class, as parametrizations do.
        current = type(self).forward
        mark = getattr(self, MARK, None)
        if current is original and mark is not None and mark.enabled:
            return compute(self, *args, **kwargs)
        return current(self, *args, **kwargs)

    forward.__name__ = "forward"
    return forward


def _class_forward(mark: Mark) -> Callable[..., Any]:
    compute = REPLACEMENTS[mark.kind].make(mark.original)

    @functools.wraps(mark.original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = compute if mark.enabled else mark.original
        return chosen(self, *args, **kwargs)

    return forward


def _replicate_for_data_parallel(self: Any) -> Any:
    """Bind the new forward to what torch.nn.DataParallel copies."""
    replica = type(self)._replicate_for_data_parallel(self)
    for name, value in vars(self).items():
        if isinstance(value, MethodType) and value.__self__ is self:
            vars(replica)[name] = MethodType(value.__func__, replica)
    return replica
