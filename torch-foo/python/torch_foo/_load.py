"""Load the native library, or say what is wrong with the installation.

For a wrong torch or a missing foo_core, the dynamic linker names a file or a
symbol at best. The errors here name the library, what was found and what to do.
"""

import importlib
import importlib.util
import re
from pathlib import Path

OLDEST_TORCH = (2, 10)  # TORCH_TARGET_VERSION in CMakeLists.txt

_REINSTALL = (
    "Reinstall torch-foo and libfoo-core, both with pip or both with conda."
)


def _check_torch() -> None:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            "torch_foo needs torch >= 2.10, and no torch is installed here. "
            "Install it: `pip install torch` or `conda install pytorch`."
        ) from error
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and tuple(map(int, found.groups())) < OLDEST_TORCH:
        raise ImportError(
            f"torch_foo needs torch >= 2.10, but torch {torch.__version__} is "
            f"installed in {Path(torch.__file__).parent}. Upgrade it: "
            "`pip install -U torch` or `conda update pytorch`."
        )


def _foo_core_libraries(folder: Path) -> list[str]:
    """Return the foo_core libraries where libtorch_foo.so looks for one."""
    site_packages = folder.parent
    places = [site_packages / "foo_core" / "lib", site_packages.parents[1]]
    return [str(file) for p in places for file in p.glob("libfoo_core.so.*")]


def _load_native() -> Path:
    """Import _C, which loads libtorch_foo.so; return the folder of both."""
    spec = importlib.util.find_spec("torch_foo._C")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"torch_foo's native library is not in {Path(__file__).parent}. "
            f"{_REINSTALL}"
        )
    folder = Path(spec.origin).parent
    try:
        importlib.import_module("torch_foo._C")
    except ImportError as error:
        missing = re.match(
            r"libfoo_core\.so\.([\d.]+): cannot open shared object", str(error)
        )
        if not missing:
            raise ImportError(
                f"torch_foo's native library does not load: {error}. "
                f"{_REINSTALL}"
            ) from error
        version = missing[1]
        found = ", ".join(_foo_core_libraries(folder))
        raise ImportError(
            f"torch_foo needs libfoo_core.so.{version}, but found "
            f"{f'only {found}' if found else 'no foo_core'}. Install the "
            f"matching version: `pip install 'libfoo-core=={version}.*'` or "
            f"`conda install libfoo-core={version}`."
        ) from error
    return folder


_check_torch()
# The folder of this package, except in editable installations.
native_folder = _load_native()
