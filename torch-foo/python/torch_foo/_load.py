"""Loads the native library, or says what is wrong with the installation.

A wrong torch or a missing foo_core shows as a linker's message about a file
or a symbol, if anything. The errors here name the library, what was found and
what to do.
"""

import re
from pathlib import Path

OLDEST_TORCH = (2, 10)
"""TORCH_TARGET_VERSION in CMakeLists.txt."""

_HERE = Path(__file__).parent


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
            "torch_foo needs torch >= 2.10, but torch "
            f"{torch.__version__} is installed in {Path(torch.__file__).parent}"
            ". Upgrade it: `pip install -U torch` or `conda update pytorch`."
        )


def _foo_core_libraries(directory: Path) -> list[str]:
    """The foo_core libraries in the places where _C looks for one."""
    places = [directory.parent / "foo_core" / "lib", directory.parents[2]]
    return [str(file) for p in places for file in p.glob("libfoo_core.so*")]


def _load_native() -> None:
    try:
        from torch_foo import _C  # type: ignore[attr-defined]  # noqa: F401
    except ImportError as error:
        missing = re.search(r"(libfoo_core\.so[.\d]*)", str(error))
        if not missing or "cannot open shared object" not in str(error):
            raise ImportError(
                f"torch_foo's native library does not load: {error}. "
                "Reinstall torch-foo and libfoo-core, both from the same "
                "source (pip or conda)."
            ) from error
        found = _foo_core_libraries(_HERE)
        raise ImportError(
            f"torch_foo needs the library foo_core as {missing[1]}, and "
            + (f"found only {', '.join(found)}" if found else "found none")
            + ". Install the version that fits: "
            "`pip install 'libfoo-core>=0.1,<0.2'` or "
            "`conda install 'libfoo-core>=0.1,<0.2'`."
        ) from error


_check_torch()
_load_native()
