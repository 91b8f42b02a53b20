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
            r"(\S+?)\.so(?:\.([\d.]+))?: cannot open shared object", str(error)
        )
        if not missing or missing[1] == "libtorch_foo":
            raise ImportError(
                f"torch_foo's native library does not load: {error}. "
                f"{_REINSTALL}"
            ) from error
        name, version = missing.groups()
        if name != "libfoo_core":
            library = str(error).partition(":")[0]
            package = name if name.startswith("lib") else f"lib{name}"
            raise ImportError(
                f"torch_foo's native library needs {library}, which is not "
                f"found. Install it, such as by `conda install {package}`. "
                f"{_REINSTALL}"
            ) from error
        found = ", ".join(_foo_core_libraries(folder))
        raise ImportError(
            f"torch_foo needs libfoo_core.so.{version}, but found "
            f"{f'only {found}' if found else 'no foo_core'}. Install the "
            f"matching version: `pip install 'libfoo-core=={version}.*'` or "
            f"`conda install libfoo-core={version}`."
        ) from error
    _check_only_copy(folder / "lib" / "libtorch_foo.so")
    return folder


def _check_only_copy(library: Path) -> None:
    """Notice operators that another copy of the library has registered."""
    import torch

    path = getattr(torch.ops.torch_foo, "_path", None)
    loaded = Path(path() if path else "unknown")
    if not loaded.exists() or not loaded.samefile(library):
        raise ImportError(
            "torch_foo's operators are registered already, from "
            f"{loaded}, so {library} cannot register them. A process can use "
            "one copy of torch_foo: load that one, or remove the other."
        )


_check_torch()
# The folder of this package, except in editable installations.
native_folder = _load_native()
