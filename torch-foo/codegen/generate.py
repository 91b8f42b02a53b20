"""Write what follows from torch_foo/operators, or check that it is written.

The classes there describe the operators. From them this writes the C++
declarations and registrations, the Python functions and the reference page.
"""

import argparse
import ast
import difflib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from description import (
    TYPES,
    DescriptionError,
    Operator,
    base_type,
    load,
    parameters,
)
from torchgen.model import Argument, OptionalType, Type

PROJECT = Path(__file__).resolve().parents[1]
HEAD = "Generated from python/torch_foo/operators by codegen/generate.py."
FORMATTERS = {
    ".h": ["clang-format", "--assume-filename"],
    ".cc": ["clang-format", "--assume-filename"],
    ".py": ["ruff", "format", "-", "--stdin-filename"],
}


def lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def blocks(parts: Iterable[str]) -> str:
    return "\n\n".join(parts)


# --- schemas ----------------------------------------------------------------


def schemas(op: Operator) -> list[tuple[str, str]]:
    """What to register: schemas, each with its kernel.

    Those of the raw operators, `_NAME`, which have no derivatives, take all
    arguments by position: the Python functions call them, and keywords take
    time.
    """
    text = str(op.schema.arguments)
    full = text.split(", ") if text else []
    raw = [f"{a.type} {a.name}" for a in op.arguments]
    returns = str(op.schema).rpartition(" -> ")[2]
    out = "Tensor(a!) out"
    result = [(str(op.schema), op.kernel)]
    if op.has_gradients:
        result.append((signature(f"_{op.name}", raw, returns), op.kernel))
    if op.has_out:
        star = [] if "*" in full else ["*"]
        for name, arguments in [
            (f"{op.name}.out", [*full, *star, out]),
            (f"_{op.name}_out", [*raw, out]),
        ]:
            result.append((signature(name, arguments), f"{op.kernel}_out"))
    if op.inplace:
        for name, arguments in [(f"{op.name}_", full), (f"_{op.name}_", raw)]:
            written = mutable(arguments, op.inplace.values())
            result.append((signature(name, written), f"{op.kernel}_"))
    return result


def signature(name: str, arguments: list[str], returns: str = "()") -> str:
    return f"{name}({', '.join(arguments)}) -> {returns}"


def mutable(arguments: list[str], written: object) -> list[str]:
    letters = iter("abcdefgh")
    tensors = [f"Tensor {argument}" for argument in written]
    return [
        a.replace("Tensor", f"Tensor({next(letters)}!)") if a in tensors else a
        for a in arguments
    ]


# --- C++ --------------------------------------------------------------------


def cpp_type(type_: Type) -> str:
    name = TYPES[base_type(type_)]
    return f"std::optional<{name}>" if isinstance(type_, OptionalType) else name


def cpp_argument(argument: Argument) -> str:
    name = cpp_type(argument.type)
    by_value = name in ("std::int64_t", "double", "bool")
    return f"{name if by_value else f'const {name}&'} {argument.name}"


def declarations(op: Operator) -> str:
    types = [cpp_type(r.type) for r in op.results]
    result = types[0] if len(types) == 1 else f"std::tuple<{', '.join(types)}>"
    arguments = ", ".join(map(cpp_argument, op.arguments))
    kernels = [f"{result} {op.kernel}({arguments});"]
    if op.has_out:
        kernels.append(f"void {op.kernel}_out({arguments}, const Tensor& out);")
    if op.inplace:
        kernels.append(f"void {op.kernel}_({arguments});")
    return lines(kernels)


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

{blocks(map(declarations, ops))}

}}  // namespace torch_foo

#pragma GCC visibility pop
"""


def cpp_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def register_cc(ops: list[Operator]) -> str:
    all_schemas = [pair for op in ops for pair in schemas(op)]
    definitions = [
        f"  m.def({cpp_string(schema)});" for schema, _ in all_schemas
    ]
    kernels = [
        f"  m.impl({cpp_string(schema.partition('(')[0])}, "
        f"boxed<&torch_foo::{kernel}>);"
        for schema, kernel in all_schemas
    ]
    # Without the others, tensors of layouts that the adaptors refuse would give
    # a page about backends in place of one sentence.
    keys = ["CPU", "CUDA", "SparseCPU", "SparseCsrCPU", "MkldnnCPU"]
    keys += ["QuantizedCPU", "SparseCUDA", "SparseCsrCUDA", "QuantizedCUDA"]
    implementations = [
        f"STABLE_TORCH_LIBRARY_IMPL(torch_foo, {key}, m) {{ implement(m); }}"
        for key in keys
    ]
    return f"""\
// {HEAD} Do not edit.
//
// The operators' schemas and kernels. Their fake kernels, gradients, autocast
// and vmap rules are registered from Python (python/torch_foo/_registration.py):
// the stable ABI has no C++ interface for them.
#include <torch/csrc/stable/library.h>

#include "boxed.h"
#include "generated/operators.h"

STABLE_TORCH_LIBRARY(torch_foo, m) {{
{lines(definitions)}
}}

namespace {{

using torch_foo::boxed;

void implement(torch::stable::detail::StableLibrary& m) {{
{lines(kernels)}
}}

}}  // namespace

// Adaptors refuse sparse and quantized tensors in one sentence; without kernels
// for these the dispatcher would, with a page about backends.
{lines(implementations)}
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
    types = [python_type(r.type) for r in op.public_results]
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
    kept = len(op.public_results)
    if kept == len(op.results):
        return ""
    return "[0]" if kept == 1 else f"[:{kept}]"


def is_special(op: Operator, *optional: str) -> str:
    """Whether PyTorch traces, transforms or differentiates a call.

    The tensors come before the mode, so that what is no tensor is noticed.
    """
    questions = ["_is_dynamo_compiling()", "_compiler_state._is_exporting_flag"]
    if op.has_gradients or op.inplace:
        requires_grad = [
            f"({a.name} is not None and {a.name}.requires_grad)"
            if isinstance(a.type, OptionalType)
            else f"{a.name}.requires_grad"
            for a in op.tensors
        ]
        requires_grad += [
            f"({name} is not None and {name}.requires_grad)"
            for name in optional
        ]
        questions += [
            "_transforms_are_active()",
            "_forward_ad_state._current_level >= 0",
            f"(({' or '.join(requires_grad)}) and _is_grad_enabled())",
        ]
    return f"({' or '.join(questions)})"


def docstring(op: Operator) -> str:
    """The class's, with the sections that are the same for all operators."""
    doc = dict(op.doc)
    doc.setdefault("Returns", "    ``out``, or a new contiguous tensor.")
    doc["Raises"] = (
        "    RuntimeError: for arguments that do not fit together. Nothing has\n"
        "        been written then."
    )
    parts = [doc[""]]
    parts += [f"{name}:\n{doc[name]}" for name in ("Args", "Returns", "Raises")]
    parts += [f"Source: {doc['Source']}", doc["Example"]]
    return textwrap.indent("\n\n".join(parts), "    ").strip()


def handles(op: Operator) -> str:
    raw = f"_{op.name}" if op.has_gradients else op.name
    names = [(f"_{op.name}", raw)]
    if op.has_out:
        names.append((f"_{op.name}_out", f"_{op.name}_out"))
    if op.inplace:
        names.append((f"_{op.name}_", f"_{op.name}_"))
    text = lines(
        f"{name} = _operation(_ops.{of}.default)" for name, of in names
    )
    if op.has_gradients:
        text += f'\n_{op.name}_call = _OPERATORS["{op.name}"].apply'
    return text


def function(op: Operator) -> str:
    name, rest = op.name, results_to_return(op)
    given = python_arguments(op)
    documented = f"_ops.{name}.default({python_arguments(op, True)}){rest}"
    documented_out = f"_ops.{name}.out({python_arguments(op, True)}, out=out)"
    special = f"_{name}_call({given}){rest}" if op.has_gradients else documented
    text = f'''
def {name}({python_parameters(op, op.has_out)}) -> {python_result(op)}:
    """{docstring(op)}
    """
    try:
        is_special = {is_special(op, *["out"] * op.has_out)}
    except AttributeError:  # not a tensor: the operator that users know says so
'''
    if op.has_out:
        text += f"""
        if out is not None:
            return {documented_out}
"""
    text += f"        return {documented}\n"
    if op.has_out:
        text += f"""
    if out is not None:
        if is_special:
            {documented_out}
        else:
            _{name}_out({given}, out)
            _mark_written(out)
        return out
"""
    text += f"""
    if is_special:
        return {special}
    return _{name}({given}){rest}
"""
    if op.inplace:
        text += inplace_function(op)
    return text


def inplace_function(op: Operator) -> str:
    name = op.name
    takes = [
        f"{argument} takes {'the result' if result == 'result' else result}"
        for result, argument in op.inplace.items()
    ]
    return f'''

def {name}_({python_parameters(op)}) -> None:
    """Do what :func:`{name}` does, in place: {", ".join(takes)}.

    The arguments and errors are the same. Not differentiable.
    """
    try:
        is_special = {is_special(op)}
    except AttributeError:
        is_special = True
    if is_special:
        _ops.{name}_.default({python_arguments(op, True)})
    else:
        _{name}_({python_arguments(op)})
        _mark_written({", ".join(op.inplace.values())})
'''


def ops_py(ops: list[Operator]) -> str:
    public = [op for op in ops if op.is_public]
    names = [op.name for op in public]
    names += [f"{op.name}_" for op in public if op.inplace]
    return f'''\
# {HEAD} Do not edit.
"""The operators as functions.

A plain call goes to an operator that has no derivatives, because those of
torch.library cost more than a small kernel even where nobody needs them. While
PyTorch traces or transforms, and where a gradient is needed, it goes to
Operator.apply, which knows about derivatives.
"""
# ruff: noqa: D205

import torch
from torch import Tensor

from torch_foo._registration import mark_written as _mark_written
from torch_foo._torch_internals import compiler_state as _compiler_state
from torch_foo._torch_internals import forward_ad_state as _forward_ad_state
from torch_foo._torch_internals import operation as _operation
from torch_foo._torch_internals import (
    transforms_are_active as _transforms_are_active,
)
from torch_foo.operators import OPERATORS as _OPERATORS

__all__ = {sorted(names)}

_ops = torch.ops.torch_foo
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled

{lines(map(handles, public))}

{blocks(map(function, public))}
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
    if op.inplace:
        variants.append(
            f"torch_foo.{op.name}_({python_parameters(op)}) -> None"
        )
    about = "\n".join(
        f"- `{name}`: {markdown(text)}" for name, text in parameters(op).items()
    )
    if "Returns" in doc:
        about += f"\n\nReturns: {markdown(doc['Returns'])}"
    autocast = "brings mixed floating-point arguments to the widest dtype"
    return f"""\
## {op.name}

```python
{lines(variants)}
```

{markdown(doc[""])}

{about}

| | |
|---|---|
| gradients | {"yes" if op.has_gradients else "none"} |
| autocast | {autocast if op.definition.autocast else "no rule"} |
| schema | `{op.schema}` |

Source: {markdown(doc["Source"])}

```python
{doc["Example"]}
```
"""


def operators_md(ops: list[Operator]) -> str:
    public = [op for op in ops if op.is_public]
    rows = []
    for op in public:
        summary = markdown(op.doc[""].split("\n\n")[0])
        rows.append(f"| [`{op.name}`](#{op.name}) | {summary} |")
    return f"""\
<!-- {HEAD} Do not edit. -->
# Operators of torch_foo

Each is a function of `torch_foo` and, under the same name, an operator of
`torch.ops.torch_foo`, which takes the same arguments. All work with
`torch.compile`, `torch.export` (static and dynamic shapes) and `torch.vmap`.
Wrong input is a `RuntimeError` that names the operator, the argument, what was
expected and what came. It is raised before anything is written.

They run on CPUs. Tensors on a CUDA device go to foo_core's CUDA kernels, which
no version of it has yet: an error says so.

| operator | computes |
|---|---|
{lines(rows)}

{lines(map(section, public))}"""


# --- writing ----------------------------------------------------------------

OUTPUTS: dict[str, Callable[[list[Operator]], str]] = {
    "src/generated/operators.h": operators_h,
    "src/generated/register.cc": register_cc,
    "python/torch_foo/ops.py": ops_py,
    "docs/operators.md": operators_md,
}


def formatted(text: str, path: Path) -> str:
    command = FORMATTERS.get(path.suffix)
    if command is None:
        return text
    *words, option = command
    try:
        done = subprocess.run(
            [*words, f"{option}={path}"],
            input=text,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        sys.exit(
            f"generate: {words[0]} is not installed; run this as "
            "`pixi run generate`, which has it"
        )
    if done.returncode:
        sys.exit(f"generate: {path.name}: {done.stderr.strip()}")
    return done.stdout


def difference(path: Path, text: str, project: Path) -> str:
    name = path.relative_to(project)
    old = path.read_text() if path.exists() else ""
    return "".join(
        difflib.unified_diff(
            old.splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{name} (as it is)",
            f"{name} (as the operators' classes have it)",
        )
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="generate", description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; show what would change, and fail if so",
    )
    parser.add_argument(
        "--project",
        type=Path,
        default=PROJECT,
        metavar="DIR",
        help="the folder with python/torch_foo/operators (default: torch-foo)",
    )
    options = parser.parse_args(arguments)
    project = options.project.resolve()
    package = project / "python" / "torch_foo"
    if not (package / "operators").is_dir():
        print(
            f"generate: {package / 'operators'} is not a folder; --project is "
            "the folder with python/torch_foo/operators",
            file=sys.stderr,
        )
        return 1
    try:
        operators = load(package)
    except DescriptionError as error:
        print(error, file=sys.stderr)
        return 1
    changed = {}
    for name, write in OUTPUTS.items():
        path = project / name
        text = formatted(write(operators), path)
        if shown := difference(path, text, project):
            changed[path] = text
            if options.check:
                print(shown, end="")
    for path, text in changed.items() if not options.check else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_text(text)
        os.replace(new, path)
        print(f"generate: wrote {path.relative_to(project)}")
    if not changed:
        print(f"generate: {len(OUTPUTS)} files are up to date")
    elif options.check:
        print(
            "generate: not what the operators' classes give; run "
            "`pixi run generate`",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
