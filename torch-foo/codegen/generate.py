"""Write what follows from torch_foo/operators, or check that it is written.

The classes there describe the operators. From them this writes the C++
declarations and registrations, the Python functions and the reference page.
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from description import TYPES, DescriptionError, Operator, base_type, load
from fallbacks import fallbacks_h
from torchgen.model import Argument, OptionalType, Type

PROJECT = Path(__file__).resolve().parents[1]
LINE, BLOCK = "\n", "\n\n"
HEAD = "Generated from python/torch_foo/operators by codegen/generate.py."


# --- schemas ----------------------------------------------------------------


def schemas(op: Operator) -> list[tuple[str, str]]:
    """What to register: schemas, each with its kernel.

    Raw operators, `_NAME`, have no derivatives, and no keywords, which take
    time: only the Python functions call them.
    """
    text = str(op.schema.arguments)
    full = text.split(", ") if text else []
    raw = [f"{a.type} {a.name}" for a in op.arguments]
    result = [(str(op.schema), op.kernel)]

    def add(name: str, arguments: list[str], ending: str, returns: str) -> None:
        text = f"{name}({', '.join(arguments)}) -> {returns}"
        result.append((text, op.kernel + ending))

    if op.has_gradients:
        add(f"_{op.name}", raw, "", str(op.schema).rpartition(" -> ")[2])
    if op.has_out:
        star = [] if "*" in full else ["*"]
        add(f"{op.name}.out", [*full, *star, "Tensor(a!) out"], "_out", "()")
        add(f"_{op.name}_out", [*raw, "Tensor(a!) out"], "_out", "()")
    if op.cls.inplace:
        written = dict.fromkeys(f"Tensor {a}" for a in op.cls.inplace.values())
        marks = dict(zip(written, "abcdefgh", strict=False))
        for name, arguments in [(f"{op.name}_", full), (f"_{op.name}_", raw)]:
            marked = [
                a.replace("Tensor", f"Tensor({marks[a]}!)") if a in marks else a
                for a in arguments
            ]
            add(name, marked, "_", "()")
    return result


# --- C++ --------------------------------------------------------------------


def cpp_type(type_: Type) -> str:
    name = TYPES[base_type(type_)]
    return f"std::optional<{name}>" if isinstance(type_, OptionalType) else name


def cpp_argument(argument: Argument) -> str:
    name = cpp_type(argument.type)
    by_value = name in ("std::int64_t", "double", "bool")
    return f"{name if by_value else f'const {name}&'} {argument.name}"


def declarations(op: Operator) -> str:
    types = [cpp_type(r.type) for r in op.schema.returns]
    result = types[0] if len(types) == 1 else f"std::tuple<{', '.join(types)}>"
    arguments = ", ".join(map(cpp_argument, op.arguments))
    kernels = [f"{result} {op.kernel}({arguments});"]
    if op.has_out:
        kernels.append(f"void {op.kernel}_out({arguments}, const Tensor& out);")
    if op.cls.inplace:
        kernels.append(f"void {op.kernel}_({arguments});")
    return LINE.join(kernels)


def operators_h(ops: list[Operator]) -> str:
    return f"""\
// {HEAD} Do not edit.
//
// The operators' kernels, as register.cc gives them to the dispatcher.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "tensor.h"

// So that a missing one shows when linking, not when loading.
#pragma GCC visibility push(hidden)

namespace torch_foo {{

{BLOCK.join(map(declarations, ops))}

}}  // namespace torch_foo

#pragma GCC visibility pop
"""


def register_cc(ops: list[Operator]) -> str:
    all_schemas = [pair for op in ops for pair in schemas(op)]
    definitions = [
        f"  m.def({json.dumps(schema)});" for schema, _ in all_schemas
    ]
    kernels = [
        f"  m.impl({json.dumps(schema.partition('(')[0])}, boxed<&{kernel}>);"
        for schema, kernel in all_schemas
    ]
    return f"""\
// {HEAD} Do not edit.
//
// The operators' schemas and kernels. Their fake kernels, gradients, autocast
// and vmap rules are registered from Python, by torch_foo/_registration.py: the
// stable ABI has no C++ interface for them.
#include "boxed.h"
#include "generated/operators.h"
#include "library.h"

namespace torch_foo {{

void define_operators(const Library& m) {{
{LINE.join(definitions)}
}}

void implement_operators(const Library& m) {{
{LINE.join(kernels)}
}}

}}  // namespace torch_foo
"""


# --- Python -----------------------------------------------------------------


def python_type(type_: Type) -> str:
    optional = " | None" if isinstance(type_, OptionalType) else ""
    return base_type(type_) + optional


def python_parameters(op: Operator, out: bool = False) -> str:
    parts = []
    for argument in op.arguments:
        if argument.name in op.keywords and "*" not in parts:
            parts.append("*")
        text = f"{argument.name}: {python_type(argument.type)}"
        if argument.default is not None:
            text += f" = {argument.default}"
        parts.append(text)
    if out:
        parts += [] if "*" in parts else ["*"]
        parts.append("out: Tensor | None = None")
    return ", ".join(parts)


def python_result(op: Operator) -> str:
    types = [python_type(r.type) for r in op.schema.returns]
    types = types[: len(types) - len(op.cls.internal_results)]
    return types[0] if len(types) == 1 else f"tuple[{', '.join(types)}]"


def python_arguments(op: Operator, keywords: bool = False) -> str:
    """What a Python function passes on."""
    named = op.keywords if keywords else set()
    return ", ".join(
        f"{a.name}={a.name}" if a.name in named else a.name
        for a in op.arguments
    )


def results_to_return(op: Operator) -> str:
    """What to write after a call to drop internal results."""
    kept = len(op.results) - len(op.cls.internal_results)
    if kept == len(op.results):
        return ""
    return "[0]" if kept == 1 else f"[:{kept}]"


def asks_for_gradients(op: Operator) -> bool:
    return bool(op.has_gradients or op.cls.inplace)


def is_recorded(op: Operator, out: bool = False) -> str:
    """Whether PyTorch records a call: traces, transforms, differentiates it.

    The tensors come before the mode, so that what is no tensor is noticed.
    """
    questions = ["_is_dynamo_compiling()", "_compiler_state._is_exporting_flag"]
    optional = [a.name for a in op.tensors if isinstance(a.type, OptionalType)]
    if asks_for_gradients(op):
        requires_grad = [
            f"({a} is not None and {a}.requires_grad)"
            if a in [*optional, "out"]
            else f"{a}.requires_grad"
            for a in [*(a.name for a in op.tensors), *["out"] * out]
        ]
        questions += [
            "_transforms_are_active()",
            "_forward_ad_state._current_level >= 0",
            f"(({' or '.join(requires_grad)}) and _is_grad_enabled())",
        ]
    return f"({' or '.join(questions)})"


def wrapped(text: str, indent: int = 0) -> str:
    """Break a line of Python, which has its spaces inside of brackets."""
    text = text.replace(") -> ", ")\0->\0").replace(" = (", "\0=\0(")
    text = text.replace("return ", "return\0").replace("def ", "def\0")
    first, rest = " " * indent, " " * (indent + 4)
    indents = {"initial_indent": first, "subsequent_indent": rest}
    return textwrap.fill(text, 80, **indents).replace("\0", " ")


def function(op: Operator) -> str:
    name, given, rest = op.name, python_arguments(op), results_to_return(op)
    with_out = f"{given}, out=out" if op.has_out else given
    parameters = python_parameters(op, op.has_out)
    raw = f"_{name}" if op.has_gradients else name
    lines = [
        f"_{name} = _operation(_ops.{raw}.default)",
        f'_{name}_operator = _OPERATORS["{name}"]',
        f"_{name}_apply = _{name}_operator.apply",
        "",
        "",
        wrapped(f"def {name}({parameters}) -> {python_result(op)}:"),
    ]
    refuse_none = f"_refuse_none(_ops.{name}.default, {given})"
    if asks_for_gradients(op):
        lines += [
            "    try:",
            wrapped(f"is_recorded = {is_recorded(op, op.has_out)}", 8),
            "    except AttributeError:  # not a tensor",
            wrapped(refuse_none, 8),
            wrapped(f"return _{name}_operator.documented({with_out}){rest}", 8),
        ]
    else:
        lines += [
            f"    if {op.tensors[0].name} is None:",
            wrapped(refuse_none, 8),
            wrapped(f"is_recorded = {is_recorded(op)}", 4),
        ]
    if op.has_out:
        lines[1:1] = [f"_{name}_out = _operation(_ops._{name}_out.default)"]
        lines += [
            "    if out is not None:",
            "        if is_recorded:",
            wrapped(f"return _{name}_operator.documented({with_out})", 12),
            f'        versioned = _versioned("{name}", out)',
            wrapped(f"_{name}_out({given}, out)", 8),
            "        _increment_version(versioned)",
            "        return out",
        ]
    lines += [
        "    if is_recorded:",
        wrapped(f"return _{name}_apply({given}){rest}", 8),
        wrapped(f"return _{name}({given}){rest}", 4),
    ]
    if op.cls.inplace:
        written = ", ".join(op.cls.inplace.values())
        full = f"_ops.{name}_.default({python_arguments(op, True)})"
        lines += [
            "",
            "",
            f"_{name}_ = _operation(_ops._{name}_.default)",
            "",
            "",
            wrapped(f"def {name}_({python_parameters(op)}) -> None:"),
            "    try:",
            wrapped(f"is_recorded = {is_recorded(op)}", 8),
            "    except AttributeError:",
            wrapped(f"_refuse_none(_ops.{name}_.default, {given})", 8),
            "        is_recorded = True",
            "    if is_recorded:",
            wrapped(full, 8),
            "    else:",
            f'        versioned = _versioned("{name}_", {written})',
            wrapped(f"_{name}_({given})", 8),
            "        _increment_version(versioned)",
        ]
    return LINE.join(lines)


def ops_py(ops: list[Operator]) -> str:
    public = [op for op in ops if op.cls.is_public()]
    names = [op.name for op in public]
    names += [f"{op.name}_" for op in public if op.cls.inplace]
    exports = ", ".join(f'"{name}"' for name in sorted(names))
    return f'''\
# {HEAD} Do not edit.
"""The operators as functions.

A plain call goes to an operator that has no derivatives, because those of
torch.library cost more than a small kernel even where nobody needs them. While
PyTorch records a call, to trace, transform or differentiate it, the call goes
to Operator.apply, which knows about derivatives.
"""
# mypy: disable-error-code="no-any-return"
# fmt: off

import torch
from torch import Tensor
from torch.autograd.graph import increment_version as _increment_version

from torch_foo._registration import document as _document
from torch_foo._registration import refuse_none as _refuse_none
from torch_foo._registration import versioned as _versioned
from torch_foo._torch_internals import compiler_state as _compiler_state
from torch_foo._torch_internals import forward_ad_state as _forward_ad_state
from torch_foo._torch_internals import operation as _operation
from torch_foo._torch_internals import (
    transforms_are_active as _transforms_are_active,
)
from torch_foo.operators import OPERATORS as _OPERATORS

{wrapped(f"__all__ = [{exports}]")}

_ops = torch.ops.torch_foo
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled

{(BLOCK + LINE).join(map(function, public))}


_document(globals())
'''


# --- the reference page -----------------------------------------------------


def markdown(text: str) -> str:
    """A docstring's text as Markdown has it."""
    return " ".join(text.split()).replace("``", "`")


def section(op: Operator) -> str:
    doc = op.doc
    variants = [
        f"torch_foo.{op.name}({python_parameters(op, op.has_out)}) "
        f"-> {python_result(op)}"
    ]
    if op.cls.inplace:
        variants.append(
            f"torch_foo.{op.name}_({python_parameters(op)}) -> None"
        )
    about = "\n".join(
        f"- `{name}`: {markdown(text)}" for name, text in op.parameters.items()
    )
    if "Returns" in doc:
        about += f"\n\nReturns: {markdown(doc['Returns'])}"
    autocast = "brings dtypes that may not be mixed to the widest of them"
    return f"""\
## {op.name}

```python
{LINE.join(variants)}
```

{markdown(doc[""])}

{about}

| | |
|---|---|
| gradients | {"yes" if op.has_gradients else "none"} |
| autocast | {autocast if op.cls.autocast else "no rule"} |
| schema | `{op.schema}` |

Source: {markdown(doc["Source"])}

```python
{doc["Example"]}
```
"""


def operators_md(ops: list[Operator]) -> str:
    public = [op for op in ops if op.cls.is_public()]
    rows = []
    for op in public:
        summary = markdown(op.doc[""].split("\n\n")[0])
        rows.append(f"| [`{op.name}`](#{op.name}) | {summary} |")
    return f"""\
<!-- {HEAD} Do not edit. -->
# Operators of torch_foo

Each is a function of `torch_foo` and, under the same name, an operator of
`torch.ops.torch_foo`, which takes the same arguments. All work with
`torch.compile`, `torch.export` (static and dynamic shapes), `torch.vmap`, the
transforms of `torch.func` in reverse mode, and DTensor. Wrong input is a
`RuntimeError` that names the operator, the argument, what was expected and what
came. It is raised before anything is written.

| operator | computes |
|---|---|
{LINE.join(rows)}

{LINE.join(map(section, public))}"""


# --- writing ----------------------------------------------------------------

OUTPUTS: dict[str, Callable[[list[Operator]], str]] = {
    "src/generated/operators.h": operators_h,
    "src/generated/register.cc": register_cc,
    "src/generated/fallbacks.h": lambda _: fallbacks_h(),
    "python/torch_foo/ops.py": ops_py,
    "docs/operators.md": operators_md,
}


def formatted(text: str, path: Path) -> str:
    if path.suffix not in (".h", ".cc"):
        return text
    command = ["clang-format", f"--assume-filename={path}"]
    try:
        done = subprocess.run(
            command, input=text, stdout=subprocess.PIPE, text=True, check=True
        )
    except FileNotFoundError:
        sys.exit("generate: no clang-format here; use `ci/pixi run generate`")
    return done.stdout


def main(arguments: list[str] | None = None, project: Path = PROJECT) -> None:
    parser = argparse.ArgumentParser(prog="generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args(arguments)
    try:
        operators = load(project / "python" / "torch_foo")
    except DescriptionError as error:
        sys.exit(str(error))
    changed = 0
    for name, write in OUTPUTS.items():
        path = project / name
        new = formatted(write(operators), path)
        old = path.read_text() if path.exists() else ""
        changed += new != old
        if options.check:
            both = old.splitlines(True), new.splitlines(True)
            names = f"{name} (as it is)", f"{name} (as generated)"
            sys.stdout.writelines(difflib.unified_diff(*both, *names))
        elif new != old:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.new")
            temporary.write_text(new)
            os.replace(temporary, path)
            print(f"generate: wrote {name}")
    if not changed:
        print(f"generate: {len(OUTPUTS)} files are up to date")
    elif options.check:
        sys.exit("generate: files are out of date; run `ci/pixi run generate`")


if __name__ == "__main__":
    main()
