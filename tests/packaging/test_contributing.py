"""The first change that CONTRIBUTING.md shows."""

import re
from pathlib import Path


def test_the_first_change_applies(run, root: Path, tmp_path: Path) -> None:
    text = (root / "CONTRIBUTING.md").read_text()
    (diff,) = re.findall(r"^```diff\n(.*?)^```", text, re.M | re.S)
    assert len(re.findall(r"^\+(?!\+\+)", diff, re.M)) == 10
    file = tmp_path / "first.diff"
    file.write_text(diff)
    run("git", "apply", "--check", file)
