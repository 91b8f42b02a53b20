"""Fast building blocks of transformer models for PyTorch.

Importing this package registers its operators with PyTorch's dispatcher, as
``torch.ops.torch_foo.*``. The functions here are the same with type hints,
defaults and ``out=``.
"""

import os

# torch comes first: the operators find libtorch because torch has loaded it.
from torch_foo import (
    _load,
    device,
    nn,
    operators,
    ops,
)
from torch_foo._build_info import BuildInfo, build_info
from torch_foo.ops import *  # noqa: F403  they are listed there

__all__ = [
    "BuildInfo",
    "__version__",
    "build_info",
    "cmake_prefix_path",
    "device",
    "nn",
    "operators",
    "ops",
]
__all__ += ops.__all__

__version__ = build_info().torch_foo

#: Where C++ programs find this package: for CMAKE_PREFIX_PATH.
cmake_prefix_path = str(_load.native_folder)

if os.environ.get("TORCH_FOO_DEVICE") == "1":
    device.enable()
