"""Write what follows from ops.yaml, or check that it is written.

description.py reads ops.yaml, templates/ show what is made of it, this file
has the spellings of types and arguments, formats the result and writes it.
"""

import argparse
import difflib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jinja2
from description import (
    DescriptionError,
    Operator,
    base_type,
    load,
)
from torchgen.model import Argument, OptionalType, Type

PROJECT = Path(__file__).resolve().parents[1]

# Template to file.
OUTPUTS = {
    "operators.h": "src/generated/operators.h",
    "register.cpp": "src/generated/register.cpp",
    "_dispatch.py": "python/torch_foo/_dispatch.py",
    "ops.py": "python/torch_foo/ops.py",
    "ops.pyi": "python/torch_foo/ops.pyi",
    "operators.md": "docs/operators.md",
}
FORMATTERS = {
    ".h": ["clang-format"],
    ".cpp": ["clang-format"],
    ".py": ["ruff", "format", "-"],
    ".pyi": ["ruff", "format", "-"],
}

CPP_TYPES = {
    "Tensor": "Tensor",
    "int": "std::int64_t",
    "float": "double",
    "bool": "bool",
    "str": "std::string",
}


# --- spellings that the templates use ---------------------------------------


def cpp_type(type_: Type) -> str:
    name = CPP_TYPES[base_type(type_)]
    return f"std::optional<{name}>" if isinstance(type_, OptionalType) else name


def cpp_argument(argument: Argument) -> str:
    name = cpp_type(argument.type)
    if name in ("std::int64_t", "double", "bool"):
        return f"{name} {argument.name}"
    return f"const {name}& {argument.name}"


def cpp_result(op: Operator) -> str:
    types = [cpp_type(r.type) for r in op.results]
    return types[0] if len(types) == 1 else f"std::tuple<{', '.join(types)}>"


def cpp_arguments(op: Operator, *more: str) -> str:
    return ", ".join([*map(cpp_argument, op.arguments), *more])


def schemas(op: Operator) -> list[tuple[str, str]]:
    """What to register: schemas, each with the ending of its kernel's name."""
    text = str(op.schema.arguments)
    arguments = text.split(", ") if text else []
    result = [(str(op.schema), "")]
    if op.has_out:
        star = [] if "*" in arguments else ["*"]
        result.append(
            (signature(f"{op.name}.out", [*arguments, *star, OUT]), "_out")
        )
    if op.inplace:
        result.append((inplace(op, f"{op.name}_", arguments), "_"))
    return result + raw_schemas(op)


def raw_schemas(op: Operator) -> list[tuple[str, str]]:
    """The same for the operators that have no derivatives.

    All their arguments are positional and have to be given: it is the Python
    functions that call them, and keywords take time.
    """
    arguments = [f"{a.type} {a.name}" for a in op.arguments]
    result = []
    if op.derivatives:
        returns = str(op.schema).rpartition(" -> ")[2]
        result.append((signature(f"_{op.name}", arguments, returns), ""))
    if op.has_out:
        result.append((signature(f"_{op.name}_out", [*arguments, OUT]), "_out"))
    if op.inplace:
        result.append((inplace(op, f"_{op.name}_", arguments), "_"))
    return result


OUT = "Tensor(a!) out"


def signature(name: str, arguments: list[str], returns: str = "()") -> str:
    return f"{name}({', '.join(arguments)}) -> {returns}"


def inplace(op: Operator, name: str, arguments: list[str]) -> str:
    letters = iter("abcdefgh")
    written = [f"Tensor {argument}" for argument in op.inplace]
    return signature(
        name,
        [
            a.replace("Tensor", f"Tensor({next(letters)}!)")
            if a in written
            else a
            for a in arguments
        ],
    )


def schema_name(schema: str) -> str:
    return schema.partition("(")[0]


def python_type(type_: Type) -> str:
    optional = " | None" if isinstance(type_, OptionalType) else ""
    return base_type(type_) + optional


def keyword_only(op: Operator) -> set[str]:
    return {a.name for a in op.schema.arguments.flat_kwarg_only}


def python_parameters(op: Operator, out: bool = False) -> str:
    """The parameters of a Python function."""
    keywords = keyword_only(op)
    parts = []
    for argument in op.arguments:
        if argument.name in keywords and "*" not in parts:
            parts.append("*")
        text = f"{argument.name}: {python_type(argument.type)}"
        if argument.default is not None:
            text += f" = {argument.default}"
        parts.append(text)
    if out:
        parts += [] if "*" in parts else ["*"]
        parts.append("out: Tensor | None = None")
    return ", ".join(parts)


def fake_parameters(op: Operator) -> str:
    """The parameters of a fake kernel: the same, all of them positional."""
    return ", ".join(
        a.name if a.default is None else f"{a.name}={a.default}"
        for a in op.arguments
    )


def cpp_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def public_names(ops: list[Operator]) -> list[str]:
    names = [name for op in ops if op.public for name in op.names()]
    return sorted(name for name in names if not name.startswith("_"))


def results_to_return(op: Operator) -> str:
    """What to write after a call to drop internal results."""
    if not op.internal_results:
        return ""
    kept = [
        i for i, r in enumerate(op.results) if r.name not in op.internal_results
    ]
    return f"[{kept[0]}]" if len(kept) == 1 else f"[: {len(kept)}]"


def python_result(op: Operator) -> str:
    types = [
        python_type(r.type)
        for r in op.results
        if r.name not in op.internal_results
    ]
    return types[0] if len(types) == 1 else f"tuple[{', '.join(types)}]"


def python_arguments(op: Operator, keywords: bool = True) -> str:
    """What a Python function passes on."""
    named = keyword_only(op) if keywords else set()
    return ", ".join(
        f"{a.name}={a.name}" if a.name in named else a.name
        for a in op.arguments
    )


def is_special(op: Operator, *optional: str) -> str:
    """Whether PyTorch traces, transforms or differentiates a call.

    The tensors come before the mode, so that what is no tensor is noticed.
    """
    questions = ["_is_dynamo_compiling()", "_compiler._is_exporting_flag"]
    if op.derivatives or op.inplace:
        requires_grad = [
            f"({a.name} is not None and {a.name}.requires_grad)"
            if isinstance(a.type, OptionalType)
            else f"{a.name}.requires_grad"
            for a in op.tensors
        ] + [
            f"({name} is not None and {name}.requires_grad)"
            for name in optional
        ]
        questions += [
            "_transforms_are_active()",
            "_forward_ad._current_level >= 0",
            f"(({' or '.join(requires_grad)}) and _is_grad_enabled())",
        ]
    return f"({' or '.join(questions)})"


# Of backward functions: `wants_x` says whether the gradient of x is needed.


def differentiated(op: Operator) -> list[str]:
    return [name for d in op.derivatives for name in d.arguments]


def wanted(op: Operator) -> str:
    """Assigns wants_x for each x."""
    names = [a.name for a in op.arguments]
    last = max(names.index(name) for name in differentiated(op))
    targets = [
        f"wants_{name}" if name in differentiated(op) else "_"
        for name in names[: last + 1]
    ]
    # torch.library passes one more, and drops those that equal defaults.
    needs = "ctx.needs_input_grad"
    if any(a.default is not None for a in op.arguments):
        needs = f"(*{needs}, {', '.join(['False'] * len(targets))})"
    needs += f"[: {len(targets)}]"
    return f"{', '.join(targets)}{',' * (len(targets) == 1)} = {needs}"


def returned(op: Operator) -> str:
    """What a backward function returns: an item for each argument."""
    targets = differentiated(op)
    items = [
        f"grad_of_{a.name}" if a.name in targets else "None"
        for a in op.arguments
    ]
    return "".join(f"{item}, " for item in items)


def gradients(op: Operator) -> list[str]:
    """The parameters of a backward function, one for each result."""
    if len(op.results) == 1:
        return ["grad"]
    return [f"grad_{r.name}" for r in op.results]


def saved(op: Operator, kind: str) -> list[str]:
    """What the formulas need, kind by kind: tensors, shapes or values."""
    names = [name for d in op.derivatives for name in getattr(d, kind)]
    return list(dict.fromkeys(names))


def saved_tensors(op: Operator) -> list[str]:
    """The tensors to save, or None in place of those that nobody needs."""
    result = []
    for name in saved(op, "tensors"):
        users = [d for d in op.derivatives if name in d.tensors]
        if len(users) == len(op.derivatives):
            result.append(name)
        else:
            tests = [f"wants_{a}" for d in users for a in d.arguments]
            result.append(f"{name} if {' or '.join(tests)} else None")
    return result


def unpacked_results(op: Operator) -> str:
    """The left side of an assignment of the results, if one is used."""
    names = [r.name or "result" for r in op.results]
    used = [*saved(op, "tensors"), *saved(op, "shapes"), *constants(op)]
    return ", ".join(names) if set(names) & set(used) else ""


def constants(op: Operator) -> list[str]:
    """The results that have no gradient."""
    pairs = zip(op.results, op.differentiable, strict=True)
    return [r.name or "result" for r, has in pairs if not has]


# Of text.


def wrapped(text: str, indent: int, first: int = 0) -> str:
    """Text in lines of at most 80 columns, the first indented differently."""
    return textwrap.fill(
        " ".join(text.split()),
        80,
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def inplace_summary(op: Operator) -> str:
    takes = [
        f"{argument} takes {'the result' if result == 'result' else result}"
        for argument, result in op.inplace.items()
    ]
    return f"Do what :func:`{op.name}` does, in place: {', '.join(takes)}."


def markdown(text: str) -> str:
    """A docstring's text as Markdown has it, in one line."""
    return " ".join(text.split()).replace("``", "`")


# --- writing ----------------------------------------------------------------


def formatted(text: str, path: Path) -> str:
    command = FORMATTERS.get(path.suffix)
    if command is None:
        return text
    option = {
        "clang-format": f"--assume-filename={path}",
        "ruff": f"--stdin-filename={path}",
    }[command[0]]
    try:
        done = subprocess.run(
            [*command, option], input=text, capture_output=True, text=True
        )
    except FileNotFoundError:
        sys.exit(
            f"generate: {command[0]} is not installed; run this as "
            "`pixi run generate`, which has it"
        )
    if done.returncode:
        sys.exit(f"generate: {path.name}: {done.stderr.strip()}")
    return done.stdout


def render(operators: list[Operator], project: Path) -> dict[Path, str]:
    """The content of each file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    spellings = {
        name: value
        for name, value in globals().items()
        if callable(value) and getattr(value, "__module__", "") == __name__
    }
    return {
        project / output: formatted(
            environment.get_template(f"{template}.jinja").render(
                ops=operators, **spellings
            ),
            project / output,
        )
        for template, output in OUTPUTS.items()
    }


def difference(path: Path, text: str, project: Path) -> str:
    name = path.relative_to(project)
    old = path.read_text() if path.exists() else ""
    return "".join(
        difflib.unified_diff(
            old.splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{name} (as it is)",
            f"{name} (as ops.yaml has it)",
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
        help="the folder with ops.yaml (default: torch-foo)",
    )
    options = parser.parse_args(arguments)
    project = options.project.resolve()
    try:
        operators = load(project / "ops.yaml", project / "python/torch_foo")
    except OSError as error:
        print(
            f"generate: {error.filename}: {error.strerror}; "
            "--project is the folder with ops.yaml",
            file=sys.stderr,
        )
        return 1
    except DescriptionError as error:
        print(error, file=sys.stderr)
        return 1
    changed = {
        path: text
        for path, text in render(operators, project).items()
        if difference(path, text, project)
    }
    for path, text in changed.items():
        if options.check:
            print(difference(path, text, project), end="")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.new")
            new.write_text(text)
            os.replace(new, path)
            print(f"generate: wrote {path.relative_to(project)}")
    if not changed:
        print(f"generate: {len(OUTPUTS)} files are up to date")
    elif options.check:
        print(
            "generate: not what ops.yaml gives; run `pixi run generate`",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
