"""PyTorch's own samples of all operators, the first of each."""

import subprocess
import sys
from pathlib import Path


def test_first_samples():
    """The task sweep-device tries all of them."""
    script = Path(__file__).with_name("sweep.py")
    command = [sys.executable, script, "--samples", "2"]
    swept = subprocess.run(command, capture_output=True, text=True)
    assert swept.returncode == 0, swept.stdout + swept.stderr
