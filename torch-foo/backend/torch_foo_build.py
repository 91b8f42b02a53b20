"""A build backend: scikit-build-core plus the requirement libfoo-core.

An isolated build gets its requirements from an index. In a checkout of the
repository, libfoo-core comes from the sibling directory instead, so that
`pip install ./libfoo ./torch-foo` works. Without build isolation these hooks
have no effect: CMake finds foo_core as usual (CMAKE_PREFIX_PATH).
"""

from pathlib import Path

from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403  all hooks of PEP 517

_LIBFOO = Path(__file__).resolve().parents[2] / "libfoo"


def _libfoo_core() -> str:
    if (_LIBFOO / "pyproject.toml").is_file():
        return f"libfoo-core @ {_LIBFOO.as_uri()}"
    return "libfoo-core>=0.2,<0.3"


def get_requires_for_build_wheel(config_settings=None):
    requires = build.get_requires_for_build_wheel(config_settings)
    return [*requires, _libfoo_core()]


def get_requires_for_build_editable(config_settings=None):
    requires = build.get_requires_for_build_editable(config_settings)
    return [*requires, _libfoo_core()]
