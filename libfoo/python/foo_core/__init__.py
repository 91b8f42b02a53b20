"""The C++ library foo_core, for CMake projects: find_package(foo_core).

There is nothing to call from Python. A scikit-build-core project that lists
libfoo-core in build-system.requires finds it without further settings; others
pass the directory of this file to CMake as foo_core_ROOT.
"""

from importlib.metadata import version as _version

__version__: str = _version("libfoo-core")
