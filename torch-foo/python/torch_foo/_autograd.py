"""Gradients, at a price that a small kernel can bear.

torch.library.register_autograd costs more than many kernels, whether or not a
gradient is needed. So the functions of torch_foo.ops use it only while PyTorch
traces, and otherwise call an operator without derivatives, inside a
torch.autograd.Function where a gradient is needed.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.torch_foo
_is_compiling = torch.compiler.is_compiling
_transforms_are_active = torch._C._are_functorch_transforms_active
_autocast_is_enabled = torch._C._is_any_autocast_enabled


def differentiable(
    op: str,
    save: Callable[..., None],
    backward: Callable[..., tuple[Tensor | None, ...]],
    vmap: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the gradients of an operator, and return it as a function.

    Args:
        op: the operator; `_{op}` is the same without gradients.
        save: called after it as ``save(ctx, inputs, output)``, with all
            arguments in ``inputs``.
        backward: called as ``backward(ctx, *gradients of the results)``.
            Returns a gradient or None for each argument.
        vmap: called as ``vmap(function, info, in_dims, *args)``.
    """
    full = getattr(_ops, op).default
    raw = getattr(_ops, f"_{op}").default._op
    keywords = [a.name for a in full._schema.arguments if a.kwarg_only]
    positional = len(full._schema.arguments) - len(keywords)
    _register(full, save, backward, positional)

    def forward(ctx: Any, *args: Any) -> Any:
        output = raw(*args)
        save(ctx, args, output)
        return output

    eager = _function(op, forward=forward, backward=backward)
    # For torch.func and vmap, which ask for the context in a second step.
    transformed = _function(
        op,
        forward=lambda *args: raw(*args),
        setup_context=save,
        backward=backward,
        vmap=lambda *args: vmap(call, *args),
    )
    # What eager.apply calls after asking whether transforms are active; a
    # quarter of the time of a small call.
    apply = super(torch.autograd.Function, eager).apply

    def call(*args: Any) -> Any:
        if _is_compiling() or _autocast_is_enabled():
            named = dict(zip(keywords, args[positional:], strict=True))
            return full(*args[:positional], **named)
        if _transforms_are_active():
            return transformed.apply(*args)
        return apply(*args)

    return call


def _function(op: str, **methods: Callable[..., Any]) -> Any:
    """Make a torch.autograd.Function, whose name shows in grad_fn."""
    members = {name: staticmethod(method) for name, method in methods.items()}
    return types.new_class(
        f"torch_foo_{op}",
        (torch.autograd.Function,),
        exec_body=lambda namespace: namespace.update(members),
    )


def _register(
    full: torch._ops.OpOverload,
    save: Callable[..., None],
    backward: Callable[..., tuple[Tensor | None, ...]],
    positional: int,
) -> None:
    """Call torch.library.register_autograd, which sets keywords apart."""
    if positional == len(full._schema.arguments):
        setup_context = save
    else:

        def setup_context(
            ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any
        ) -> None:
            save(ctx, (*inputs, *keyword_only_inputs.values()), output)

    torch.library.register_autograd(
        full.name(),
        lambda ctx, *grads: backward(ctx, *grads)[:positional],
        setup_context=setup_context,
    )


def mark_written(*tensors: Tensor) -> None:
    """Tell autograd, which then notices if it had saved the old content."""
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
