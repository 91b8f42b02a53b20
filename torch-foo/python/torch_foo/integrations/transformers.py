"""Lets the Llama-like models of transformers compute with torch_foo.

>>> from torch_foo.integrations.transformers import patch, unpatch
>>> print(patch(model))  # doctest: +SKIP

A module is known by what it computes: its `forward` has to be the code of
Llama's in the same transformers, as it is in Mistral, Qwen2, Qwen3, SmolLM3 and
many more, which transformers generates from Llama's source. Everything else is
left alone. Nothing but `forward` is replaced: parameters, state_dict, hooks and
configuration stay what they are.

Results differ by rounding only. In float32 that is the last bits; in 16 bits
transformers rounds after each step, torch_foo once at the end of each operator.

For a backward, norms and gates are not kept but computed again.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

import torch_foo

try:
    from transformers.activations import ACT2FN
    from transformers.loss.loss_utils import ForCausalLMLoss
    from transformers.models.llama import modeling_llama as llama
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "transformers":
        raise
    raise ImportError(
        "torch_foo.integrations.transformers needs transformers, which is not "
        "installed here: `pip install 'torch-foo[transformers]'` or "
        "`conda install transformers`"
    ) from error

__all__ = ["Report", "patch", "unpatch"]


@dataclass
class Report:
    """What :func:`patch` did to a model, or to a model's class.

    Attributes:
        model: the name of the model's class.
        replaced: (kind, name of a class) -> how many of its modules compute
            with torch_foo now; kinds are named as patch's arguments. For a
            model's class, 1 for each class.
        left: (name of a class, reason) -> how many of its modules were left
            alone although they look as if they could be replaced.
    """

    model: str
    replaced: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.replaced)

    def __str__(self) -> str:
        if not self.replaced and not self.left:
            return f"{self.model}: nothing that torch_foo could replace"
        lines = [f"{self.model}:"]
        for (kind, name), count in self.replaced.items():
            lines.append(f"  {kind:<13} in {count:3d} x {name}")
        for (name, reason), count in self.left.items():
            lines.append(f"  left alone: {count:3d} x {name}: {reason}")
        return "\n".join(lines)


def patch(
    model_or_class: nn.Module | type[nn.Module],
    *,
    rms_norm: bool = True,
    mlp: bool = True,
    rope: bool = True,
    cross_entropy: bool = True,
) -> Report:
    """Let a model compute with torch_foo, or all models of a class.

    Training, gradient checkpointing, torch.compile and generation work as
    before. Patching again changes nothing.

    Args:
        model_or_class: a model of transformers, such as a LlamaForCausalLM, or
            its class, which stands for all classes of modules of its source
            file: for models that exist already, too.
        rms_norm: whether to replace the norms, by :func:`torch_foo.rms_norm`.
        mlp: the product in gated feed-forward blocks, by
            :func:`torch_foo.silu_mul` or :func:`torch_foo.gelu_mul`.
        rope: the rotation of queries and keys, by :func:`torch_foo.rope`.
        cross_entropy: the loss that a model computes from `labels`, by
            :func:`torch_foo.cross_entropy`, which keeps no log-probabilities.

    Returns:
        What was replaced, and what was left alone and why; false, with a
        warning, if nothing was replaced.

    Raises:
        TypeError: for what is neither a module nor a class of modules.
    """
    _check("patch", model_or_class)
    report = Report(_name(model_or_class))
    wanted = {
        "rms_norm": rms_norm,
        "mlp": mlp,
        "rope": rope,
        "cross_entropy": cross_entropy,
    }
    for target in list(_targets(model_or_class)):
        cls = target if isinstance(target, type) else type(target)
        for replacement in _REPLACEMENTS:
            if wanted[replacement.kind] and replacement.is_candidate(cls):
                _replace(target, replacement, report)
        if wanted["cross_entropy"]:
            _replace_loss(target, report)
    if not report:
        warnings.warn(f"torch_foo: {report}", stacklevel=2)
    return report


def unpatch(model_or_class: nn.Module | type[nn.Module]) -> int:
    """Undo :func:`patch`, of the same model or class.

    Returns:
        How many replacements were undone; 0, with a warning, if there were
        none.

    Raises:
        TypeError: for what is neither a module nor a class of modules.
    """
    _check("unpatch", model_or_class)
    changes = sum(_restore(target) for target in _targets(model_or_class))
    if not changes:
        warnings.warn(
            f"torch_foo: {_name(model_or_class)} is not patched, so there is "
            "nothing to undo",
            stacklevel=2,
        )
    return changes


# --- what torch_foo computes instead ----------------------------------------


def _rms_norm_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        x, weight = hidden_states, self.weight
        # Of two dtypes transformers takes the wider, and so does autocast.
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(
            x.device.type
        ):
            return original(self, x)
        eps = self.variance_epsilon
        y = torch_foo.rms_norm(x, weight, eps)
        _can_recompute(y, torch_foo.rms_norm, x, weight, eps)
        return y

    return forward


_GATES: dict[type, Callable[[Tensor, Tensor], Tensor]] = {
    nn.SiLU: torch_foo.silu_mul,
    type(ACT2FN["silu"]): torch_foo.silu_mul,
    type(ACT2FN["gelu"]): torch_foo.gelu_mul,
}
for _tanh in ("gelu_new", "gelu_pytorch_tanh"):
    _GATES[type(ACT2FN[_tanh])] = functools.partial(
        torch_foo.gelu_mul, approximate="tanh"
    )


def _mlp_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = _GATES.get(type(self.act_fn))
        if gate is None:  # only where a class was patched
            return original(self, x)
        with _recomputed(x):
            left, right = self.gate_proj(x), self.up_proj(x)
        y = gate(left, right)
        _can_recompute(y, gate, left, right)
        with _recomputed(y):
            down: Tensor = self.down_proj(y)
        return down

    return forward


# Results that can be computed again: their version, and how.
_again: MutableMapping[Tensor, tuple[int, Callable[[], Tensor]]]
_again = WeakTensorKeyDictionary()
# Hooks on what autograd saves, such as those of gradient checkpointing.
_active_hooks = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", None
)


def _can_recompute(
    result: Tensor, function: Callable[..., Tensor], *arguments: Any
) -> None:
    if result.requires_grad and not torch.compiler.is_compiling():
        detached = (
            a.detach() if isinstance(a, Tensor) else a for a in arguments
        )
        compute = functools.partial(function, *detached)
        _again[result] = (result._version, compute)


def _recomputed(tensor: Tensor) -> AbstractContextManager[object]:
    """Keep no copy of a tensor for the backward of what is done with it here.

    Norms and gates are computed again there, which takes a small part of the
    time of the matrix products that use them; their arguments are kept anyway.
    """
    # A compiler has its own ways to do this.
    if not tensor.requires_grad or torch.compiler.is_compiling():
        return nullcontext()
    version, compute = _again.get(tensor, (None, None))
    if (
        compute is None
        or version != tensor._version  # a hook of the user's has changed it
        or _active_hooks is None
        or _active_hooks(False)  # these would see no tensor of ours
    ):
        return nullcontext()
    memory, numel = tensor.data_ptr(), tensor.numel()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        if (
            saved.data_ptr() == memory
            and saved.numel() == numel
            and saved.is_contiguous()
        ):
            return saved.shape  # dimensions may have been merged
        return saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else compute().view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """apply_rotary_pos_emb by torch_foo.rope.

    q and k: (batch, heads, seq, n), or (batch, seq, heads, n) if unsqueeze_dim
    is 2; cos and sin: (batch or 1, seq, n), n's second half like the first.
    """
    batch, seq, n = cos.shape
    cos, sin = (t.reshape(-1, n)[:, : n // 2] for t in (cos, sin))
    positions = None
    if batch > 1:
        positions = torch.arange(batch * seq, device=cos.device)
        positions = positions.view(batch, seq)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    q = torch_foo.rope(q, cos, sin, positions)
    k = torch_foo.rope(k, cos, sin, positions)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    return q, k


def _attention_forward(original: FunctionType) -> Callable[..., Any]:
    rotated = _with_global(original, "apply_rotary_pos_emb", _rotate)

    def forward(
        self: Any, hidden_states: Tensor, *rest: Any, **more: Any
    ) -> Any:
        with _recomputed(hidden_states):
            return rotated(self, hidden_states, *rest, **more)

    return forward


def _with_global(
    function: FunctionType, name: str, value: object
) -> Callable[..., Any]:
    """A copy of a function that finds another object by a global name."""
    scope, closure = function.__globals__, function.__closure__
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        scope = {**scope, name: value}
        del scope["__name__"]  # else Dynamo looks names up in that module
    else:  # it is a decorator's, and has the decorated one in its closure
        wrapped = _with_global(inner, name, value)
        closure = tuple(
            CellType(wrapped) if cell.cell_contents is inner else cell
            for cell in closure or ()
        )
    copy = FunctionType(
        function.__code__,
        scope,
        function.__name__,
        function.__defaults__,
        closure,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copy, function)
    if inner is None:
        del copy.__wrapped__  # type: ignore[attr-defined]
    else:
        copy.__wrapped__ = wrapped  # type: ignore[attr-defined]
    return copy


def _causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: object,
) -> Tensor:
    """ForCausalLMLoss of transformers, which also ignores other arguments."""
    if shift_labels is None:  # token i predicts token i + 1
        assert labels is not None
        labels = nn.functional.pad(labels, (0, 1), value=ignore_index)
        shift_labels = labels[..., 1:]
    loss = torch_foo.cross_entropy(
        logits.view(-1, vocab_size),
        shift_labels.reshape(-1).to(logits.device),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / num_items_in_batch


# --- what is replaced, and how ----------------------------------------------

# On a function that replaces another: that other.
_REPLACES = "_torch_foo_replaces"
_DIFFERENT = "it does not compute what Llama's does"


def _code(function: Callable[..., Any]) -> tuple[object, ...]:
    """What a function does, without its decorators and its documentation."""
    function = inspect.unwrap(function)
    code = function.__code__
    constants = [c for c in code.co_consts if c != function.__doc__]
    return code.co_code, code.co_names, tuple(constants)


def _is_like(function: Callable[..., Any], other: Callable[..., Any]) -> bool:
    return _code(function) == _code(other)


def _refuse_norm(target: object, cls: type[nn.Module]) -> str | None:
    if not _is_like(cls.forward, llama.LlamaRMSNorm.forward):
        return _DIFFERENT
    if isinstance(target, nn.Module) and (
        type(target.weight) not in (Tensor, nn.Parameter)
    ):
        kind = type(target.weight).__name__
        return f"its weight is a {kind}, expected a plain tensor"
    return None


def _refuse_mlp(target: object, cls: type[nn.Module]) -> str | None:
    if not _is_like(cls.forward, llama.LlamaMLP.forward):
        return _DIFFERENT
    if isinstance(target, nn.Module) and type(target.act_fn) not in _GATES:
        name = type(target.act_fn).__name__
        return f"its activation is {name}, expected SiLU or GELU"
    return None


def _refuse_attention(target: object, cls: type[nn.Module]) -> str | None:
    scope = inspect.unwrap(cls.forward).__globals__
    embeddings = [
        value.forward
        for name, value in scope.items()
        if name.endswith("RotaryEmbedding")
        and isinstance(value, type)
        and issubclass(value, nn.Module)
    ]
    if not (
        _is_like(scope["apply_rotary_pos_emb"], llama.apply_rotary_pos_emb)
        and embeddings
        and all(
            _is_like(forward, llama.LlamaRotaryEmbedding.forward)
            for forward in embeddings
        )
    ):
        return _DIFFERENT
    head_dim = getattr(target, "head_dim", 2)
    if head_dim % 2:
        return f"its head_dim is {head_dim}, expected an even number"
    return None


@dataclass(frozen=True)
class _Replacement:
    kind: str
    is_candidate: Callable[[type[nn.Module]], bool]
    refuse: Callable[[object, type[nn.Module]], str | None]
    make: Callable[[Any], Callable[..., Any]]


def _rotates(cls: type[nn.Module]) -> bool:
    forward = inspect.unwrap(cls.forward)
    names = getattr(forward, "__code__", _rotates.__code__).co_names
    return "apply_rotary_pos_emb" in names


_REPLACEMENTS = (
    _Replacement(
        "rms_norm",
        lambda cls: cls.__name__.endswith("RMSNorm"),
        _refuse_norm,
        _rms_norm_forward,
    ),
    _Replacement(
        "mlp",
        lambda cls: cls.__name__.endswith("MLP"),
        _refuse_mlp,
        _mlp_forward,
    ),
    _Replacement("rope", _rotates, _refuse_attention, _attention_forward),
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


def _name(model: nn.Module | type[nn.Module]) -> str:
    return (model if isinstance(model, type) else type(model)).__name__


def _targets(
    model: nn.Module | type[nn.Module],
) -> Iterator[nn.Module | type[nn.Module]]:
    """The modules of a model, or the classes in the source of its class."""
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


def _replace(
    target: nn.Module | type[nn.Module],
    replacement: _Replacement,
    report: Report,
) -> None:
    cls = target if isinstance(target, type) else type(target)
    own = vars(target).get("forward")
    if hasattr(own, _REPLACES) or hasattr(cls.forward, _REPLACES):
        report.replaced[replacement.kind, cls.__name__] += 1
        return
    reason = replacement.refuse(target, cls)
    if reason is None and own is not None and not isinstance(target, type):
        reason = "its forward was replaced before, by another library"
    if reason is not None:
        report.left[cls.__name__, reason] += 1
        return
    forward = functools.update_wrapper(
        replacement.make(cls.forward), cls.forward
    )
    setattr(forward, _REPLACES, cls.forward)
    if isinstance(target, type):
        target.forward = forward
    else:
        target.forward = MethodType(forward, target)
    report.replaced[replacement.kind, cls.__name__] += 1


def _replace_loss(target: Any, report: Report) -> None:
    is_class = isinstance(target, type)
    if is_class:
        if not target.__name__.endswith("ForCausalLM"):
            return
        inherited = target.loss_function
        if not hasattr(inherited.fget, _REPLACES):

            def loss_function(self: Any) -> Callable[..., Tensor]:
                chosen = inherited.fget(self)
                return _causal_lm_loss if chosen is ForCausalLMLoss else chosen

            setattr(loss_function, _REPLACES, inherited)
            target.loss_function = property(loss_function, inherited.fset)
    elif getattr(target, "loss_type", None) != "ForCausalLM":
        return
    elif target.loss_function is ForCausalLMLoss:
        target.loss_function = _causal_lm_loss
    elif target.loss_function is not _causal_lm_loss:
        name = getattr(target.loss_function, "__name__", "something else")
        reason = f"its loss function is {name}, expected ForCausalLMLoss"
        report.left[_name(target), reason] += 1
        return
    report.replaced["cross_entropy", _name(target)] += 1


def _restore(target: Any) -> int:
    """Undo what patch did to a target; the number of changes."""
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
    elif vars(target).get("_loss_function") is _causal_lm_loss:
        del target._loss_function
        changes += 1
    return changes
