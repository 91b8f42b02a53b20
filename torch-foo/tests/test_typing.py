"""Type checkers know the operators, as their schemas have them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_foo  # noqa: F401 (defines torch.ops.torch_foo)
from torch_foo.operators import OPERATORS

pytest.importorskip("mypy")

REJECTED = Path(__file__).parent / "typing" / "rejected.py"
HEAD = """\
import torch_foo
from torch import Tensor
from typing_extensions import assert_type

def calls(tensor: Tensor) -> None:
"""
# The values of a schema's types, and one that is of another type.
VALUES = {
    "Tensor": (["tensor"], "1.0"),
    "int": (["3"], "0.5"),
    "float": (["0.5", "1"], "'1'"),
    "bool": (["True"], "'yes'"),
    "str": (["'text'"], "True"),
}


def values(argument: Any) -> list[str]:
    """Return values for an argument of a schema; the last one is wrong."""
    kind = str(argument.type)
    right, wrong = VALUES[re.sub(r"Optional\[(\w+)\]", r"\1", kind)]
    optional = kind.startswith("Optional") or argument.is_out
    return [*right, *["None"] * optional, wrong]


def forms() -> Iterator[tuple[str, list[Any], str]]:
    """Yield each function's name, arguments and type of result."""
    for name, operator in OPERATORS.items():
        if not operator.is_public():
            continue
        op = getattr(torch.ops.torch_foo, name)
        schema = op.default._schema
        count = len(schema.returns) - len(operator.internal_results)
        tensors = ", ".join(["Tensor"] * count)
        result = "Tensor" if count == 1 else f"tuple[{tensors}]"
        yield name, schema.arguments, result
        if "out" in operator.variants:
            yield name, op.out._schema.arguments, result
        if operator.inplace:
            yield f"{name}_", schema.arguments, "None"


def program() -> Iterator[str]:
    """Write the calls of all functions; a wrong one has its error behind it."""
    for name, arguments, result in forms():

        def call(given: dict[str, str], *by_position: str, name=name) -> str:
            words = [*by_position, *(f"{n}={v}" for n, v in given.items())]
            return f"torch_foo.{name}({', '.join(words)})"

        every = {a.name: values(a)[0] for a in arguments}
        needed = {
            a.name: values(a)[0]
            for a in arguments
            if not (a.has_default_value() or a.is_out)
        }
        named = {a.name: every[a.name] for a in arguments if a.kwarg_only}
        positional = [v for n, v in every.items() if n not in named]
        right = [call(needed), call(every), call(named, *positional)]
        wrong = [(call(every | {"unknown": "1"}), "call-arg")]
        if named:
            wrong.append((call({}, *every.values()), "call-arg"))
        for a in arguments:
            *good, bad = values(a)
            right += [call(needed | {a.name: value}) for value in good]
            wrong.append((call(needed | {a.name: bad}), "arg-type"))
            if a.name in needed:
                others = {n: v for n, v in needed.items() if n != a.name}
                wrong.append((call(others), "call-arg"))
        for text in right:
            checked = f"assert_type({text}, {result})"
            yield f"    {text if result == 'None' else checked}"
        yield from (f"    {text}  # {code}" for text, code in wrong)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typing")
    shutil.copy(REJECTED, folder)
    text = HEAD + "\n".join(dict.fromkeys(program()))
    (folder / "schemas.py").write_text(f"{text}\n")
    return folder


@pytest.fixture(scope="module")
def errors(
    pytestconfig: pytest.Config, programs: Path
) -> set[tuple[str, int, str]]:
    """Return file, line and code of each error that mypy finds."""
    # Kept for the next time, as mypy takes half a minute to read torch.
    cache = pytestconfig.cache.mkdir("mypy")
    options = ["--strict", "--config-file=", f"--cache-dir={cache}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "."],
        cwd=programs,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(\S+):(\d+): error: .*\[(.*)\]$", done.stdout, re.M)
    assert len(found) == done.stdout.count(": error: ")
    return {(file, int(line), code) for file, line, code in found}


@pytest.mark.parametrize("file", ["rejected.py", "schemas.py"])
def test_mistakes_alone_are_found(
    file: str, programs: Path, errors: set[tuple[str, int, str]]
) -> None:
    lines = (programs / file).read_text().splitlines()
    expected = {
        (file, number, comment)
        for number, line in enumerate(lines, 1)
        if (comment := line.partition("  # ")[2])
    }
    assert expected
    assert {error for error in errors if error[0] == file} == expected
