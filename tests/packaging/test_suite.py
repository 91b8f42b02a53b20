"""torch-foo's own tests, with the packages of dist/conda.

The recipe runs a few of them; the others do not depend on how a package is
made, but on what is in it. So the slowest, of sizes and of model classes, run
in test-python alone.
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
TOOLS = ["cxx-compiler", "expecttest", "hypothesis", "pytest", "pytest-xdist"]
PLACE = "import torch_foo; print(torch_foo.__file__)"
SLOW = ["test_huge.py", "test_transformers_models.py"]
# The device's tests want processes of their own.
SELECTIONS = [
    [f"--ignore=tests/{name}" for name in ["device", *SLOW]],
    ["tests/device"],
]


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
    options = ["-n", "auto", "--dist", "worksteal", "-rsEf"]
    passed = 0
    for selection in SELECTIONS:
        output = run(
            "python",
            "-m",
            "pytest",
            *options,
            *selection,
            cwd=tmp_path,
            env=env,
        )
        print(output[-3000:])
        passed += int(re.findall(r"(\d+) passed", output)[-1])
    assert passed > 4000
