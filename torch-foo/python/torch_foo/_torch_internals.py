"""The private interfaces of torch that this package uses, with reasons.

Public ones cost more than a small kernel, or do not exist. The tests of values,
dispatch, errors and modules passed with torch 2.10.0, 2.13.0 and 2.14.1.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, compiler, nn
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import resolve_key
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.utils.hooks import RemovableHandle

#: The type of torch.ops.NAMESPACE.NAME.OVERLOAD.
OpOverload = torch._ops.OpOverload

#: Keys of the dispatcher, the type that kernels with a keyset take.
DispatchKeySet = torch._C.DispatchKeySet


#: The classes of tensors that no other library has made. The last two are
#: PyTorch's own, for tracing.
PLAIN_TENSORS = {Tensor, nn.Parameter, FakeTensor, FunctionalTensor}

#: Whether torch.func or torch.vmap transforms the call: no public function
#: tells.
transforms_are_active = torch._C._are_functorch_transforms_active

#: Whether any kind of device is in an autocast region, in one call:
#: torch.is_autocast_enabled() asks for one kind.
autocast_is_enabled = torch._C._is_any_autocast_enabled

#: How many modes see what the dispatcher is given, such as those that count
#: operations or make fake tensors: no public function tells.
count_dispatch_modes = torch._C._len_torch_dispatch_stack

#: None unless torch.jit traces; the public function has no type.
tracing_state = torch._C._get_tracing_state

#: torch.compiler._is_exporting_flag: an attribute costs 30 ns, and
#: torch.compiler.is_exporting() 60.
compiler_state = compiler

#: forward_ad._current_level, at least 0 inside of dual_level(): no public
#: function tells.
forward_ad_state = forward_ad


def arguments(overload: OpOverload) -> list[Any]:
    """Return the arguments of a schema, which no public function gives."""
    return list(overload._schema.arguments)


def results(overload: OpOverload) -> list[Any]:
    """Return the results of a schema."""
    return list(overload._schema.returns)


def returned_names(overload: OpOverload) -> list[str]:
    """Return the names of an operator's results."""
    return [r.name or "result" for r in results(overload)]


def operation(overload: OpOverload) -> Callable[..., Any]:
    """Return what an overload calls; calling that directly saves 0.2 µs."""
    return overload._op


def kernel(overload: OpOverload, key: str) -> Callable[..., Any]:
    """Return an operator's kernel for a key, as a function of its arguments.

    Unlike overload.redispatch, it takes numbers for tensors, as kernels in
    Python are given them. It raises NotImplementedError if there is none.
    """
    asked = getattr(torch._C.DispatchKey, key)
    # _op_dk crashes for a key whose kernel is one of an alias key.
    return partial(overload._op_dk, resolve_key(overload, asked))


def names_with_kernel(key: str, namespace: str) -> list[str]:
    """Return the operators of a namespace that have a kernel for a key."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return [name for name in names if name.startswith(f"{namespace}::")]


def owners(storage: torch.UntypedStorage) -> int:
    """Return how many tensors and other owners a storage has.

    The object given is no owner of its own. No public function tells.
    """
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


#: Its `next_id` counts all hooks that were ever registered, on any module.
HookHandle = RemovableHandle

#: Whether there are hooks on all modules.
global_hooks_are_set: Callable[[], Any] = nn.modules.module._has_any_global_hook


def saved_tensor_hooks_are_active() -> bool:
    """Return whether the user has set hooks, as gradient checkpointing does.

    Where a version of torch does not tell, they may be active.
    """
    name = "_top_saved_tensors_default_hooks"
    top = getattr(torch._C._autograd, name, None)
    return top is None or bool(top(False))


def apply_without_transforms(
    function: type[torch.autograd.Function],
) -> Callable[..., Any]:
    """Return what Function.apply calls after it has asked for transforms.

    The question, which the caller has answered already, is a quarter of the
    time of a small call.
    """
    inherited: Any = super(torch.autograd.Function, function)
    apply: Callable[..., Any] = inherited.apply
    return apply


def dispatch_keys(name: str) -> DispatchKeySet:
    return DispatchKeySet(getattr(torch._C.DispatchKey, name))


#: A context in which the dispatcher leaves keys out, so that an autocast kernel
#: can call its operator again.
exclude_keys = torch._C._ExcludeDispatchKeyGuard

#: A context in which the dispatcher goes on below autograd.
below_autograd = torch._C._AutoDispatchBelowAutograd

#: A context in which torch.func lets a torch.autograd.Function record at one
#: level of its transforms.
single_level_function = enable_single_level_autograd_function


@contextmanager
def recording_outer_levels() -> Iterator[None]:
    """Let the outer levels of torch.func record, inside of a Function.forward.

    A torch.autograd.Function turns the recording off there, for all levels.
    """
    if not transforms_are_active():
        yield
        return
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


#: The keys below autograd, for a kernel that calls what comes after it.
after_autograd = torch._C._after_autograd_keyset

#: The keys below the one that counts changes of tensors.
after_inplace_or_view = torch._C._after_ADInplaceOrView_keyset


def cache_sharding_by_all_arguments(overload: OpOverload) -> None:
    """Let DTensor ask a sharding rule again when any argument differs.

    register_sharding lets it look at tensors and int only, while reductions are
    strings, and which gradients are wanted is bool.
    """
    from torch.distributed.tensor import DTensor  # not before it is used

    propagator = DTensor._op_dispatcher.sharding_propagator
    info = propagator.op_to_schema_info[overload]
    info.static_argnum = 0
    info.static_kwargkey = [
        a.name for a in arguments(overload) if a.kwarg_only
    ] or None


#: The name of the device PrivateUse1, "privateuseone" until a backend gives it
#: another one.
backend_name = torch._C._get_privateuse1_backend_name

#: Make a tensor of a DLPack capsule on any device: torch.from_dlpack asks the
#: object for its device first, and knows PyTorch's own.
from_dlpack = torch._C._from_dlpack
