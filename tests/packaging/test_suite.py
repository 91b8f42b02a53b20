"""torch-foo's own tests, with the packages of dist/conda.

The recipe runs a few of them; the others do not depend on how a package is
made, but on what is in it.
"""

import re
import shutil
from pathlib import Path

from conda_tools import (
    DIST,
    channel_url,
    create_environment,
    environment_variables,
    forget,
)

# torch.compile needs a compiler.
TOOLS = ["cxx-compiler", "hypothesis", "pytest", "pytest-xdist"]
PLACE = "import torch_foo; print(torch_foo.__file__)"


def test_the_suite_passes(run, root: Path, tmp_path: Path) -> None:
    forget("libfoo-core", "torch-foo")
    prefix = tmp_path / "env"
    channels = [DIST.as_uri(), channel_url()]
    create_environment(prefix, ["torch-foo", *TOOLS], channels)
    # Away from the sources, which must not be what is tested.
    for name in ("docs", "tests"):
        shutil.copytree(root / "torch-foo" / name, tmp_path / name)
    env = environment_variables(prefix) | {"PYTHONPATH": ""}
    env["OMP_WAIT_POLICY"] = "passive"  # other tests run beside these
    place = run("python", "-c", PLACE, cwd=tmp_path, env=env)
    assert Path(place.splitlines()[-1]).is_relative_to(prefix.resolve())
    options = ["-n", "auto", "--dist", "worksteal", "-rfEs"]
    output = run("python", "-m", "pytest", *options, cwd=tmp_path, env=env)
    print(output[-3000:])
    passed = re.search(r"(\d+) passed", output)
    assert passed
    assert int(passed[1]) > 4000
