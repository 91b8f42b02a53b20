"""What type checkers know about the operators, and that it is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch_foo

pytest.importorskip("mypy")

PROGRAMS = Path(__file__).parent / "typing"


@pytest.fixture(scope="module")
def errors(pytestconfig):
    """What mypy says: file, line and code of each error."""
    # Kept for the next time, as mypy takes half a minute to read torch.
    cache = pytestconfig.cache.mkdir("mypy")
    options = ["--strict", "--config-file=", f"--cache-dir={cache}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "."],
        cwd=PROGRAMS,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(\S+):(\d+): error: .*\[(.*)\]$", done.stdout, re.M)
    assert len(found) == done.stdout.count(": error: ")
    return {(file, int(line), code) for file, line, code in found}


def test_correct_program_is_accepted(errors):
    assert [error for error in errors if error[0] == "accepted.py"] == []


def test_mistakes_are_found(errors):
    lines = (PROGRAMS / "rejected.py").read_text().splitlines()
    expected = {
        ("rejected.py", number, comment)
        for number, line in enumerate(lines, 1)
        if (comment := line.partition("  # ")[2])
    }
    assert expected
    assert {error for error in errors if error[0] == "rejected.py"} == expected


def test_program_uses_every_operator():
    tree = ast.parse((PROGRAMS / "accepted.py").read_text())
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    missing = set(torch_foo.ops.__all__) - used
    assert not missing, "call them in tests/typing/accepted.py"


def test_stubs_agree_with_functions(tmp_path):
    # Names, kinds and defaults are compared, for which torch is not read.
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy.stubtest", "torch_foo.ops"]
    done = subprocess.run(
        [*command, "--concise", "--mypy-config-file", config],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
