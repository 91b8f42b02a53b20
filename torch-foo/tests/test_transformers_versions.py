"""The other major version of transformers, and no transformers at all.

Every test runs a separate process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MAJORS = {"4": "transformers==4.57.*", "5": "transformers>=5,<6"}
# Run pytest, unless another transformers comes first on the path.
PYTEST = """
import sys, pytest, transformers
assert transformers.__version__.startswith(sys.argv[1]), transformers
sys.exit(pytest.main(sys.argv[2:]))
"""


def run(*command: object, **env: str) -> str:
    """Run Python, which must succeed; return its output."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, **env},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_other_major_version(tmp_path):
    transformers = pytest.importorskip("transformers")
    installed = transformers.__version__.partition(".")[0]
    (other,) = MAJORS.keys() - {installed}
    # Install only what pip would change in this environment, into a folder that
    # comes before it on the path.
    pip = ["-m", "pip", "--quiet", "install"]
    plan = tmp_path / "plan.json"
    run(*pip, "--dry-run", "--report", plan, MAJORS[other])
    changes = [
        "{name}=={version}".format_map(package["metadata"])
        for package in json.loads(plan.read_text())["install"]
    ]
    folder = tmp_path / "packages"
    # Most modules are never imported, so compiling all of them takes longer.
    run(*pip, "--no-deps", "--no-compile", "--target", folder, *changes)
    path = os.pathsep.join(
        [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    tests = Path(__file__).parent
    output = run(
        *("-c", PYTEST, f"{other}."),
        *("-p", "no:cacheprovider", "-m", "not cuda"),
        tests / "test_transformers.py",
        tests / "test_transformers_decode.py",
        f"{tests}/test_gguf.py::test_models",
        f"{tests}/test_docs.py::test_tutorials[transformers]",
        PYTHONPATH=path,
    )
    assert " passed" in output
    assert " skipped" not in output


# --- none at all ------------------------------------------------------------


def test_torch_foo_does_not_import_transformers():
    code = "import sys, torch_foo; print('transformers' in sys.modules)"
    assert run("-c", code) == "False\n"


NONE_INSTALLED = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
try:
    import torch_foo.integrations.transformers
except ImportError as error:
    print(error)
"""


def test_no_transformers():
    assert run("-c", NONE_INSTALLED) == (
        "torch_foo.integrations.transformers needs transformers, which is not "
        "installed here: `pip install 'torch-foo[transformers]'` or "
        "`conda install transformers`\n"
    )
