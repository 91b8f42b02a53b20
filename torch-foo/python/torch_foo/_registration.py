"""Tells PyTorch what operators are beside their kernels in C++.

Fake kernels, gradients, autocast and vmap rules are registered from Python: the
stable ABI has no C++ interface for them. A kernel in Python for the key
Autograd costs more than many kernels, whether or not a gradient is needed. So
the functions of torch_foo.ops call the operator that has one only while PyTorch
traces or transforms. Otherwise they call a raw operator, `_NAME`, which has no
derivatives, inside a torch.autograd.Function where a gradient is needed. Modes
and subclasses with a __torch_dispatch__ are shown the documented one all the
same.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import importlib.abc
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_foo import _torch_internals as internals
from torch_foo._torch_internals import OpOverload, arguments
from torch_foo.operators import OPERATORS, Operator
from torch_foo.operators.base import RefusalError

_ops = torch.ops.torch_foo
# Kept alive here: registrations end with their Library.
_library = torch.library.Library("torch_foo", "IMPL")


def register(operator: type[Operator]) -> None:
    """Register an operator's rules, and set what it is called by."""
    name = operator.__name__
    if not hasattr(_ops, name):
        raise ImportError(
            f"torch_foo's native library has no operator {name}: it was built "
            "from other sources than this Python package. Reinstall torch-foo, "
            "or in a checkout, run `ci/pixi run generate` and `ci/pixi run "
            "build`."
        )
    full = getattr(_ops, name).default
    operator.documented = call_by_position(full)
    is_differentiable = operator.is_public() and operator.backward is not None
    raw = getattr(_ops, f"_{name}").default if is_differentiable else full
    operator.raw = raw
    overloads = [full, raw] if is_differentiable else [full]
    for overload in overloads:
        torch.library.register_fake(
            overload.name(), _fake_of(operator, full, name.removeprefix("_"))
        )
        torch.library.register_vmap(
            overload.name(), _vmap_of(operator, full, overload)
        )
        if operator.autocast:
            for device in ("CPU", "CUDA", "PrivateUse1"):
                _register_autocast(
                    overload, f"Autocast{device}", operator.promote
                )
    if is_differentiable:
        _show_instead(raw, full)
        operator.apply = _register_autograd(operator, full, raw)
    elif operator.is_public():
        # Nothing has a gradient: without this, asking for one is a warning.
        operator.apply = full
        _library.impl(name, torch.library.fallthrough_kernel, "Autograd")

    if "out" in operator.variants:
        out = getattr(_ops, name).out
        overloads += _register_mutating(operator, out, f"_{name}_out", ["out"])
        operator.documented = _call_or_write(operator.documented, out)
    if operator.inplace:
        overload = getattr(_ops, f"{name}_").default
        written = list(operator.inplace.values())
        overloads += _register_mutating(
            operator, overload, f"_{name}_", written
        )
    for overload in overloads:
        tags = [*operator.tags]
        if not _has_keyword_integer(overload):
            tags.append("flexible_layout")
        overload.tags.extend(getattr(torch.Tag, tag) for tag in tags)


def _has_keyword_integer(overload: OpOverload) -> bool:
    """Return whether AOTInductor cannot run it with the tag flexible_layout.

    At least in torch 2.10 to 2.14, it only packs the defaults of keywords where
    a layout is demanded, but counts integers among them when it runs.
    """
    return any(
        a.kwarg_only and isinstance(a.type, torch.IntType)
        for a in arguments(overload)
    )


# --- calls with all arguments by position -----------------------------------


def all_arguments(
    overload: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> list[Any]:
    """Return the arguments of a call in the schema's order, with defaults."""
    missing = arguments(overload)[len(args) :]
    return [*args, *(kwargs.get(a.name, a.default_value) for a in missing)]


def _parameters(overload: OpOverload) -> tuple[int, list[str]]:
    """Return how many parameters are positional, and the others' names."""
    keywords = [a.name for a in arguments(overload) if a.kwarg_only]
    return len(arguments(overload)) - len(keywords), keywords


def call_by_position(overload: OpOverload) -> Callable[..., Any]:
    """Return the operator as a function that takes no keywords."""
    positional, keywords = _parameters(overload)
    if not keywords:
        return overload

    def call(*args: Any) -> Any:
        named = dict(zip(keywords, args[positional:], strict=True))
        return overload(*args[:positional], **named)

    return call


def refuse_none(overload: OpOverload, *args: Any) -> None:
    """Name a tensor that is missing: for a call without any, torch has none."""
    for argument, value in zip(arguments(overload), args, strict=True):
        if isinstance(argument.type, torch.TensorType) and value is None:
            name = overload.name().removeprefix("torch_foo::").lstrip("_")
            raise RuntimeError(
                f"torch_foo.{name}: {argument.name} is None, expected a tensor"
            )


def _call_or_write(
    call: Callable[..., Any], overload: OpOverload
) -> Callable[..., Any]:
    """Return the operator as a function that also takes ``out``."""
    write = call_by_position(overload)

    def call_or_write(*args: Any, out: Any) -> Any:
        if out is None:
            return call(*args)
        write(*args, out)
        return out

    return call_or_write


def _show_instead(raw: OpOverload, documented: OpOverload) -> None:
    """Let whatever has a __torch_dispatch__ see the documented operator.

    Policies of checkpointing, flop counters, sharding rules and the like name
    that one. The key is the dispatcher's first for all of them, and for nothing
    else, so that other calls cost the same.
    """
    call = call_by_position(documented)
    _library.impl(raw.name(), call, "PythonTLSSnapshot")


# --- fake kernels -----------------------------------------------------------


def _fake_of(
    operator: type[Operator], full: OpOverload, name: str
) -> Callable[..., Any]:
    """Return the operator's fake kernel, with one message for all refusals."""

    def check(given: Sequence[Any]) -> None:
        tensors = [a for a in given if isinstance(a, Tensor)]
        for argument, value in zip(arguments(full), given, strict=True):
            if isinstance(argument.type, torch.TensorType) and value is None:
                raise RefusalError(f"a tensor as {argument.name}")
        for tensor in tensors:
            if tensor.layout != torch.strided:
                raise RefusalError("{} dense", tensor)
            if tensor.device != tensors[0].device:
                raise RefusalError(
                    "{} and {} on one device", tensors[0], tensor
                )

    def refusal(given: Sequence[Any], error: RefusalError) -> RuntimeError:
        named = [
            (argument.name, value)
            for argument, value in zip(arguments(full), given, strict=True)
            if value is not None
        ]

        def text(value: Any) -> str:
            names = [name for name, v in named if v is value]
            return names[0] if names else str(value)

        described = [f"{name} {_describe(value)}" for name, value in named]
        return RuntimeError(
            f"torch_foo.{name} cannot take {', '.join(described)}: expected "
            f"{error.expected.format(*map(text, error.values))}"
        )

    def fake(*args: Any, **kwargs: Any) -> Any:
        given = all_arguments(full, args, kwargs)
        try:
            check(given)
            return operator.fake(*given)
        except RefusalError as error:
            raise refusal(given, error) from None

    return fake


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {tuple(value.shape)} on {value.device}"


# --- vmap -------------------------------------------------------------------


def _vmap_of(
    operator: type[Operator], full: OpOverload, overload: OpOverload
) -> Callable[..., Any]:
    """Return the operator's rule, which takes only what an example may be."""
    call = call_by_position(overload)
    check = _fake_of(operator, full, operator.__name__.removeprefix("_"))

    def example(value: Any, dim: int | None) -> Any:
        if dim is None:
            return value
        if value.shape[dim] == 0:
            return value.new_empty(value.movedim(dim, 0).shape[1:])
        return value.select(dim, 0)

    def vmap(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        given: Sequence[Any] = all_arguments(overload, args, kwargs)
        refuse_none(overload, *given)
        dims = (*in_dims, *[None] * (len(given) - len(in_dims)))
        if operator.autocast and internals.autocast_is_enabled():
            given = operator.promote(*given)
        check(*map(example, given, dims))
        return operator.vmap(call, info, dims, *given)

    return vmap


# --- gradients --------------------------------------------------------------


def _register_autograd(
    operator: type[Operator], full: OpOverload, raw: OpOverload
) -> Callable[..., Any]:
    """Register the gradients of an operator, and return it as a function."""
    setup_context, backward = operator.setup_context, operator.backward
    assert setup_context is not None
    assert backward is not None
    kernel = internals.operation(raw)

    def forward(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        setup_context(ctx, args, output)
        return output

    apply = _function(operator, forward, backward)
    _library.impl(
        full.name(), _autograd_of(operator, full), "Autograd", with_keyset=True
    )
    by_position = call_by_position(full)
    is_compiling = torch.compiler.is_compiling
    autocast_is_enabled = internals.autocast_is_enabled
    transforms_are_active = internals.transforms_are_active

    def call(*args: Any) -> Any:
        if is_compiling() or autocast_is_enabled() or transforms_are_active():
            return by_position(*args)
        return apply(*args)

    return call


def _autograd_of(
    operator: type[Operator], full: OpOverload
) -> Callable[..., Any]:
    """Return the operator's kernel for the dispatcher's key Autograd.

    It differs from torch.library.register_autograd's in that torch.func can
    call it, once for each level of its transforms, as it calls torch's own.
    """
    setup_context, backward = operator.setup_context, operator.backward
    assert setup_context is not None
    assert backward is not None
    positional, keywords = _parameters(full)

    def forward(ctx: Any, *args_and_keyset: Any) -> Any:
        *args, keyset = args_and_keyset
        named = dict(zip(keywords, args[positional:], strict=True))
        with internals.below_autograd(), internals.recording_outer_levels():
            output = full.redispatch(keyset, *args[:positional], **named)
        setup_context(ctx, args, output)
        return output

    apply = _function(
        operator, forward, lambda ctx, *grads: (*backward(ctx, *grads), None)
    )

    def kernel(
        keyset: internals.DispatchKeySet, *args: Any, **kwargs: Any
    ) -> Any:
        below = keyset & internals.after_autograd
        if (
            torch.is_grad_enabled()
            and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        ) or internals.forward_ad_state._current_level >= 0:  # refused
            given = all_arguments(full, args, kwargs)
            with internals.single_level_function():
                return apply(*given, below)
        return full.redispatch(below, *args, **kwargs)

    return kernel


def _function(
    operator: type[Operator],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a torch.autograd.Function, whose name shows in grad_fn."""

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _no_forward_mode(operator)

    methods = {"forward": forward, "backward": backward, "jvp": jvp}
    members = {name: staticmethod(method) for name, method in methods.items()}
    return internals.apply_without_transforms(
        types.new_class(
            f"torch_foo_{operator.__name__}",
            (torch.autograd.Function,),
            exec_body=lambda namespace: namespace.update(members),
        )
    )


def _no_forward_mode(operator: type[Operator]) -> NotImplementedError:
    return NotImplementedError(
        f"torch_foo.{operator.__name__} does not support forward mode AD"
    )


def versioned(op: str, *written: Tensor) -> list[Tensor]:
    """Return the tensors whose changes autograd counts, before a change.

    Outside of inference mode, inference tensors are refused, as torch does, but
    before anything is written.
    """
    try:
        result = [tensor for tensor in written if not tensor.is_inference()]
    except AttributeError:  # not a tensor: the operator says so
        return []
    if len(result) < len(written) and not torch.is_inference_mode_enabled():
        names = ["out"]
        if op not in OPERATORS:
            names = list(OPERATORS[op.removesuffix("_")].inplace.values())
        are_inference = [tensor.is_inference() for tensor in written]
        name = names[are_inference.index(True)]
        raise RuntimeError(
            f"torch_foo.{op}: {name} is an inference tensor, which can only be "
            "written to in inference mode; clone it"
        )
    return result


# --- autocast ---------------------------------------------------------------


def _register_autocast(
    overload: OpOverload, key: str, rule: Callable[..., Any]
) -> None:
    excluded = internals.dispatch_keys(key)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with internals.exclude_keys(excluded):
            return overload(*rule(*args), **kwargs)

    _library.impl(overload.name(), kernel, key)


# --- variants that write to an argument -------------------------------------


def _register_mutating(
    operator: type[Operator],
    overload: OpOverload,
    raw_name: str,
    written: Sequence[str],
) -> list[OpOverload]:
    raw: OpOverload = getattr(_ops, raw_name).default
    op = operator.__name__
    function, form, instead = op, "out=", "omit out="
    if written != ["out"]:
        function = form = f"{op}_"
        instead = f"use torch_foo.{op}"
    names = [a.name for a in arguments(overload)]
    full_fake = _fake_of(operator, getattr(_ops, op).default, function)

    def fake(*args: Any, **kwargs: Any) -> None:
        values = all_arguments(overload, args, kwargs)
        given = dict(zip(names, values, strict=True))
        out = given.pop("out", None)
        first = next((v for v in given.values() if isinstance(v, Tensor)), out)
        if isinstance(out, Tensor) and out.device != first.device:
            # Of tensors with data, the result below would take memory.
            raise RuntimeError(
                f"torch_foo.{op}: out is {_describe(out)}, expected one on "
                f"{first.device}"
            )
        result = full_fake(*given.values())
        if "out" in written:
            check_out(operator, out, result)
            return
        results = result if isinstance(result, tuple) else (result,)
        for name, like in zip(written, results, strict=True):
            if (given[name].shape, given[name].dtype) != (
                like.shape,
                like.dtype,
            ):
                raise RuntimeError(
                    f"torch_foo.{op}_: {name} is {_describe(given[name])}, "
                    f"expected {_describe(like)}"
                )

    def autograd(
        keyset: internals.DispatchKeySet, *args: Any, **kwargs: Any
    ) -> None:
        tensors = [
            a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)
        ]
        if internals.forward_ad_state._current_level >= 0 and any(
            forward_ad.unpack_dual(t).tangent is not None for t in tensors
        ):
            raise _no_forward_mode(operator)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise RuntimeError(
                f"torch_foo.{function}: {form} does not support automatic "
                "differentiation, but one of the tensors requires grad; "
                f"{instead} or use torch.no_grad()"
            )
        below = keyset & internals.after_autograd
        overload.redispatch(below, *args, **kwargs)

    def count_version(
        keyset: internals.DispatchKeySet, *args: Any, **kwargs: Any
    ) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        tensors = [given[name] for name in written]
        counted: list[Tensor] = []
        if all(isinstance(t, Tensor) for t in tensors):  # else refused below
            counted = versioned(function, *tensors)
        below = keyset & internals.after_inplace_or_view
        overload.redispatch(below, *args, **kwargs)
        torch.autograd.graph.increment_version(counted)

    def negative(each: OpOverload, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in written:
            if isinstance(given[name], Tensor) and given[name].is_neg():
                raise RuntimeError(
                    f"torch_foo.{function}: {name} is a negated view, expected "
                    "a plain tensor"
                )
        each(
            *map(_resolve_neg, args),
            **{name: _resolve_neg(value) for name, value in kwargs.items()},
        )

    for key, kernel in (
        ("Autograd", autograd),
        ("ADInplaceOrView", count_version),
    ):
        _library.impl(overload.name(), kernel, key, with_keyset=True)
    _show_instead(raw, overload)
    for each in (overload, raw):
        _library.impl(each.name(), partial(negative, each), "Negative")
        torch.library.register_fake(each.name(), fake)
    return [overload, raw]


def check_out(
    operator: type[Operator], out: Tensor | None, result: Tensor
) -> None:
    """Refuse an `out` that is not like the result."""
    if out is None:
        raise RuntimeError(
            f"torch_foo.{operator.__name__}: out is None, expected "
            f"{_describe(result)}"
        )
    if (out.shape, out.dtype) != (result.shape, result.dtype) or (
        (out.device, out.layout) != (result.device, torch.strided)
    ):
        raise RuntimeError(
            f"torch_foo.{operator.__name__}: out is {_describe(out)}, expected "
            f"{_describe(result)}"
        )


def _resolve_neg(value: Any) -> Any:
    return value.resolve_neg() if isinstance(value, Tensor) else value


# --- what torch imports only when it is used --------------------------------


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Calls a function after the first import of a module.

    What some modules of torch have to be told is told then, so that torch_foo
    need not wait for their import.
    """

    def __init__(self, module: str, function: Callable[[], None]) -> None:
        self.module, self.function = module, function
        if module in sys.modules:
            self.call()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (f.find_spec(name, path, target) for f in others)
        spec = next((spec for spec in found if spec), None)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        sys.meta_path.remove(self)
        self.call()

    def call(self) -> None:
        try:
            self.function()
        except Exception as error:  # the import is not ours
            warnings.warn(
                f"torch_foo could not tell {self.module} about its operators: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for name, operator in OPERATORS.items():
        if operator.flops is not None:
            register_flop_formula(getattr(_ops, name))(operator.flops)


def _register_sharding() -> None:
    from torch_foo import _sharding

    _sharding.register()


# --- documentation ----------------------------------------------------------

_RAISES = """Raises:
    RuntimeError: for arguments that it cannot take. Nothing has been
        written then.

"""


def document(functions: dict[str, Any]) -> None:
    """Give the functions of torch_foo.ops their operators' docstrings."""
    for name, operator in OPERATORS.items():
        if not operator.is_public():
            continue
        text = inspect.cleandoc(operator.__doc__ or "")
        head, source, rest = text.partition("Source:")
        functions[name].__doc__ = head + _RAISES + source + rest
        if operator.inplace:
            takes = [
                f"``{argument}`` takes the {result}"
                for result, argument in operator.inplace.items()
            ]
            functions[f"{name}_"].__doc__ = (
                f"Do what :func:`{name}` does, in place.\n\n"
                f"{', '.join(takes)}. The arguments and errors are the same. "
                "Not differentiable."
            )


for _operator in OPERATORS.values():
    register(_operator)
_AfterImport("torch.utils.flop_counter", _register_flops)
_AfterImport("torch.distributed.tensor", _register_sharding)
