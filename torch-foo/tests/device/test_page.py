"""The example in docs/device-backend.md works."""

import re
from pathlib import Path


def test_example(capsys):
    page = Path(__file__).parents[2] / "docs" / "device-backend.md"
    (code,) = re.findall("```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith("foo:0 ")
