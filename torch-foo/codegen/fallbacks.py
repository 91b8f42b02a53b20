"""What the device "foo" runs on the CPU through C++: the table of fallbacks.

From native_functions.yaml, which torchgen has packaged, this takes the
operators with a schema that the stable ABI can carry.
"""

from pathlib import Path

import torchgen
from torchgen.gen import parse_native_yaml
from torchgen.model import (
    Argument,
    BaseTy,
    BaseType,
    FunctionSchema,
    ListType,
    NativeFunction,
    OptionalType,
    SchemaKind,
    Type,
)

# Types that torch_call_dispatcher refuses, in all versions since 2.11.
REFUSED = {"Scalar", "Generator", "Storage", "Stream", "Dimname", "QScheme"}

# What device/_memory.py, _views.py and _fallback.py implement.
OWN = {
    "empty.memory_format",
    "empty_strided",
    "resize_",
    "_copy_from",
    "_copy_from_and_resize",
    "_local_scalar_dense",
}


def _base(type_: Type) -> str:
    while not isinstance(type_, BaseType):
        type_ = type_.elem
    return type_.name.name


def _letter(type_: Type) -> str:
    """Return the letter of device/fallback.h for a type."""
    optional = isinstance(type_, OptionalType)
    inner = type_.elem if optional else type_
    if isinstance(inner, ListType):
        if _base(inner) != "Tensor" or optional:
            return "."
        return "M" if isinstance(inner.elem, OptionalType) else "L"
    letters = {BaseTy.Tensor: "TO", BaseTy.Device: "DE"}
    return letters.get(inner.name, "..")[optional]


def _result_letter(schema: FunctionSchema, i: int) -> str:
    result = schema.returns[i]
    if result.annotation is None:
        return _letter(result.type)
    written = [
        k
        for k, argument in enumerate(schema.arguments.flat_all)
        if isinstance(argument, Argument)
        and argument.annotation is not None
        and argument.annotation.alias_set == result.annotation.alias_set
    ]
    return str(written[0])


def is_carried(function: NativeFunction) -> bool:
    """Return whether an operator goes through C++.

    Views and what changes a tensor's shape need its own metadata, and out= may
    be resized: device/_fallback.py does these.
    """
    schema = function.func
    if (
        str(schema.name) in OWN
        or function.has_composite_implicit_autograd_kernel
        or function.is_view_op
        or "inplace_view" in function.tags
        or schema.kind() in (SchemaKind.out, SchemaKind.scratch)
        or schema.kind() is SchemaKind.mutable
    ):
        return False
    types = [a.type for a in schema.arguments.flat_all]
    types += [r.type for r in schema.returns]
    tensors = [t for t in types if _base(t) == "Tensor"]
    return bool(tensors) and not REFUSED & {_base(t) for t in types}


def fallbacks() -> list[tuple[str, str, str, str]]:
    """Return rows of the table: name, overload, arguments, results."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(
        str(folder / "native_functions.yaml"), str(folder / "tags.yaml")
    )
    rows = []
    for function in parsed.native_functions:
        if not is_carried(function):
            continue
        schema = function.func
        arguments = "".join(_letter(a.type) for a in schema.arguments.flat_all)
        results = "".join(
            _result_letter(schema, i) for i in range(len(schema.returns))
        )
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
