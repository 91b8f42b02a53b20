"""What the device "foo" runs on the CPU through C++: the table of fallbacks.

From native_functions.yaml, which torchgen has packaged, this takes the
operators with a schema that the stable ABI can carry.
"""

from pathlib import Path

import torchgen
from torchgen.gen import parse_native_yaml
from torchgen.model import (
    BaseType,
    DispatchKey,
    ListType,
    NativeFunction,
    OptionalType,
    SchemaKind,
    Type,
)

# Types that torch_call_dispatcher refuses, in some version since 2.11; str,
# which it leaks before 2.14; and Device, for which results may not be on foo.
REFUSED = {
    "Device",
    "Dimname",
    "Generator",
    "QScheme",
    "Scalar",
    "Storage",
    "Stream",
    "str",
}

# They have a kernel in device/kernels.h, which frees its string.
WITH_STRING = {"gelu", "gelu_backward"}

# What device/_memory.py, _views.py and _fallback.py implement, or ATen by
# these.
OWN = {
    "_copy_from",
    "_copy_from_and_resize",
    "_efficientzerotensor",
    "_has_same_storage_numel",
    "_local_scalar_dense",
    "_new_zeros_with_same_feature_meta",
    "clone",
    "copy_",
    "empty.memory_format",
    "empty_strided",
    "is_set_to",
    "resize_",
}

# They return memory of an argument, which their schemas do not say.
VIEWS = {
    "_lazy_clone",
    "_reshape_copy",
    "_unsafe_view",
    "lift",
    "unsafe_split.Tensor",
    "unsafe_split_with_sizes",
}

# They return a tensor of the CPU, whatever the device.
ON_CPU = {"_pack_padded_sequence"}


def _base(type_: Type) -> str:
    while not isinstance(type_, BaseType):
        type_ = type_.elem
    return type_.name.name


def _code(type_: Type) -> str:
    """Return the code of device/fallback.h for a type."""
    if isinstance(type_, OptionalType):
        return "?" + _code(type_.elem)
    if isinstance(type_, ListType):
        return "[" + _code(type_.elem)
    return {"Tensor": "T", "str": "S"}.get(_base(type_), ".")


def is_carried(function: NativeFunction) -> bool:
    """Return whether an operator goes through C++.

    Views and what changes a tensor's shape need its own metadata, and out= may
    be resized: device/_fallback.py does these. It also knows from where random
    numbers come.
    """
    schema = function.func
    kind = schema.kind()
    if (
        str(schema.name) in OWN | VIEWS | ON_CPU
        or (
            function.has_composite_implicit_autograd_kernel
            and not function.structured_delegate
        )
        or function.is_view_op
        or {"inplace_view", "nondeterministic_seeded"} & function.tags
        or kind not in (SchemaKind.functional, SchemaKind.inplace)
    ):
        return False
    arguments = schema.arguments.flat_all
    written = [a for a in arguments if a.is_write]
    if kind is SchemaKind.inplace and (
        written != arguments[:1]
        or not written[0].type.is_tensor_like()
        or written[0].type.is_list_like()
        or len(schema.returns) != 1
    ):
        return False
    types = [a.type for a in arguments] + [r.type for r in schema.returns]
    # torch_call_dispatcher makes of SymInt[] a list of anything, which kernels
    # with int[] refuse, as structured ones are.
    if function.structured_delegate and any(
        t.is_list_like() and _base(t) == "SymInt" for t in types
    ):
        return False
    return any(_base(t) == "Tensor" for t in types) and not (
        (REFUSED - {"str"} if str(schema.name) in WITH_STRING else REFUSED)
        & {_base(t) for t in types}
    )


def fallbacks() -> list[tuple[str, str, str, str]]:
    """Return rows of the table: name, overload, arguments, results."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(
        str(folder / "native_functions.yaml"), str(folder / "tags.yaml")
    )
    on_cpu = parsed.backend_indices[DispatchKey.CPU]
    rows = []
    for function in parsed.native_functions:
        if not is_carried(function) or not (
            function.has_composite_explicit_autograd_kernel
            or function.structured_delegate
            or on_cpu.has_kernel(function)
        ):
            continue
        schema = function.func
        arguments = "".join(_code(a.type) for a in schema.arguments.flat_all)
        results = "".join(_code(r.type) for r in schema.returns)
        if schema.kind() is SchemaKind.inplace:
            results = "0"
        name = f"aten::{schema.name.name}"
        rows.append((name, schema.name.overload_name, arguments, results))
    return rows


def fallbacks_h() -> str:
    """Return generated/fallbacks.h."""
    table = "\n".join(
        f'    {{"{name}", "{overload}", "{arguments}", "{results}"}},'
        for name, overload, arguments, results in fallbacks()
    )
    return f"""\
// Generated from torchgen's native_functions.yaml by codegen/fallbacks.py. Do
// not edit.
//
// The operators of ATen that the device "foo" runs on the CPU through C++.
#pragma once

#include "device/fallback.h"

namespace torch_foo::device {{

// clang-format off
constexpr Fallback kFallbacks[] = {{
{table}
}};
// clang-format on

}}  // namespace torch_foo::device
"""
