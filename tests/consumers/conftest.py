"""Fixtures of the consumers' tests, and the table of results and times."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

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
