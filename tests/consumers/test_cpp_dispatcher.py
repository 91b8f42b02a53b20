"""torch-foo's operators in a C++ program without Python."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

PROJECT = Path(__file__).parent / "cpp_dispatcher"


def test_cpp_dispatcher(run, tmp_path: Path) -> None:
    """Run the commands of the README, then the program once more."""
    shutil.copytree(PROJECT, tmp_path, dirs_exist_ok=True)
    readme = (PROJECT / "README.md").read_text()
    (commands,) = re.findall(r"^```sh\n(.*?)^```", readme, re.M | re.S)
    env = {
        "CMAKE_GENERATOR": "Ninja",
        # This drops a library without a called function, unless told not to.
        "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} -Wl,--as-needed",
    }
    run("bash", "-ec", commands, cwd=tmp_path, env=env)

    program = tmp_path / "build/main"
    loaded = run("ldd", program)
    assert "libtorch_foo.so" in loaded
    assert not re.search(r"lib(torch_)?python", loaded)
    # The loader binds every symbol at once, as after linking with `-z now`.
    said = run(program, env={"LD_BIND_NOW": "1"})
    for dtype in ("Float", "Double", "BFloat16"):
        assert f"{dtype}: equal to ATen" in said
    assert "torch_foo.rms_norm: weight has 3 elements" in said
