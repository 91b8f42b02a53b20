"""The table of what was skipped, from files as pytest and ctest write them."""

from pathlib import Path

import pytest
import summary

PYTEST = """<testsuites><testsuite>
<testcase name="a" time="1.5"/>
<testcase name="b" time="0"><skipped type="pytest.skip"
  message="no CUDA device (122 cases)">file.py:1: no CUDA device</skipped>
</testcase>
<testcase name="c" time="0"><skipped type="pytest.skip"
  message="no CUDA device (8 cases)"/></testcase>
</testsuite></testsuites>"""
CTEST = """<testsuite>
<testcase name="abi.dump" time="0.5" status="notrun">
  <skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
  <system-out>skipped: there is no abidw here
</system-out></testcase>
<testcase name="unit.environment" time="0.5" status="notrun">
  <skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
  <system-out>[ RUN      ] Environment.Forced
build_info_test.cc:99: Skipped
no SSE2 here
[  SKIPPED ] Environment.Forced (6 ms)
</system-out></testcase>
</testsuite>"""


def test_reasons_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "python.xml").write_text(PYTEST)
    (tmp_path / "cpp.xml").write_text(CTEST)
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    assert summary.main() == 0
    shown = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in shown] == [
        "suite passed skipped seconds",
        "cpp 0 2 1",
        "python 1 2 2",
        "",
        "skipped, and why:",
        "cpp 1 x no SSE2 here",
        "cpp 1 x there is no abidw here",
        "python 2 x no CUDA device",
    ]
