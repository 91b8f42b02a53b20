"""Every operator at the SIMD targets that the other tests do not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch_foo

VALUES = Path(__file__).with_name("test_values.py")
# Every operator and dtype, at sizes with odd tails.
TESTS = [
    f"{VALUES}::{name}"
    for name in (
        "test_large",
        "test_gradient_accuracy",
        "test_linear_accuracy",
        "test_norm_gradient_accuracy",
    )
]
NOT_HERE = 77
# foo_core reads the environment variable once per process and ignores targets
# that it cannot use.
RUN = f"""
import sys, pytest, torch_foo
if torch_foo.build_info().simd_target != sys.argv[1]:
    sys.exit({NOT_HERE})
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "target", ["AVX3_ZEN4", "AVX3_DL", "AVX2", "SSE4", "SSE2"]
)
def test_values_at(target):
    if target == torch_foo.build_info().simd_target:
        pytest.skip(f"the other tests use {target}")
    done = subprocess.run(
        [sys.executable, "-c", RUN, target, "-q", *TESTS],
        env={**os.environ, "FOO_CORE_SIMD_TARGET": target},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode == NOT_HERE:
        pytest.skip(f"this machine or foo_core does not support {target}")
    assert done.returncode == 0, done.stdout[-6000:]
