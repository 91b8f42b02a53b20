"""Fixtures of the consumers' tests, and the table of results and times."""

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def readme(root: Path) -> Callable[[str], str]:
    """Return the code below a heading of libfoo/README.md."""
    text = (root / "libfoo/README.md").read_text()

    def code(heading: str) -> str:
        block = rf"^##+ {heading}\n[^#]*?^```\w+\n(.*?)^```"
        found = re.search(block, text, re.MULTILINE | re.DOTALL)
        assert found, f"libfoo/README.md has no code below {heading!r}"
        return found[1]

    return code


@pytest.fixture(scope="session")
def shell(run) -> Callable[..., str]:
    """Run lines of a shell, such as those of a README."""

    def lines(script: str, cwd: Path, env: dict[str, str]) -> str:
        return run("bash", "-euxc", script, cwd=cwd, env=env)

    return lines


@pytest.fixture(scope="session")
def install(
    run, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """Build a Python project, once, and return the folder that has it."""

    @functools.cache
    def site(project: Path) -> Path:
        folder = tmp_path_factory.mktemp(project.name)
        pip = [sys.executable, "-m", "pip", "install"]
        pip += ["--target", folder / "site"]
        here = ["--no-deps", "--no-build-isolation", project]
        run(*pip, *here, env={"SKBUILD_BUILD_DIR": str(folder / "build")})
        return folder / "site"

    return site


@pytest.fixture(scope="session")
def check_without_gil() -> Callable[[Callable[[Any], object]], None]:
    """Check that the main thread runs while another one is in a kernel.

    No thread is interrupted here: if the kernel held the GIL, this one could
    not run before the kernel's end, however often that is tried.
    """
    import numpy as np  # not in the environment of test_conda_package.py

    def check(call: Callable[[Any], object]) -> None:
        row = np.zeros(1000, np.float32)
        rows = 10_000
        kernel_began = threading.Event()
        times = {}

        def work() -> None:
            # Many rows share the memory of one, so only the kernel takes time.
            x = np.broadcast_to(row, (rows, row.size))
            kernel_began.set()
            times["begin"] = time.perf_counter()
            call(x)
            times["end"] = time.perf_counter()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            for _ in range(20):
                kernel_began.clear()
                thread = threading.Thread(target=work)
                thread.start()
                kernel_began.wait()
                now = time.perf_counter()
                thread.join()
                took = times["end"] - times["begin"]
                if took < 0.1:
                    rows *= 2
                elif times["begin"] < now < times["end"]:
                    return
        finally:
            sys.setswitchinterval(interval)
        pytest.fail(f"a kernel ran for {took:.2f} s, and nothing beside it")

    return check


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> None:
    """Print a line per test of test_consumers.py, and per other file."""
    worst = ["passed", "skipped", "failed"]
    seconds: defaultdict[str, float] = defaultdict(float)
    results: defaultdict[str, str] = defaultdict(lambda: worst[0])
    reports = [
        report
        for kind in terminalreporter.stats.values()
        for report in kind
        if isinstance(report, pytest.TestReport)
        and (terminalreporter.startpath / report.fspath).is_relative_to(HERE)
    ]
    for report in sorted(reports, key=lambda report: report.start):
        path, _, test = report.nodeid.partition("::")
        name = Path(path).name
        if name == "test_consumers.py":
            name = test.partition("[")[0]
        seconds[name] += report.duration
        results[name] = max(results[name], report.outcome, key=worst.index)
    if not results:
        return
    terminalreporter.section("consumers of foo_core")
    for name, result in results.items():
        terminalreporter.line(f"{result:7} {seconds[name]:6.1f} s  {name}")
    total = sum(seconds.values())
    terminalreporter.line(f"{'all':7} {total:6.1f} s")
