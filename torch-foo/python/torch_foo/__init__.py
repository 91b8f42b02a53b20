"""Fast building blocks of transformer models for PyTorch.

Importing this package registers its operators with PyTorch's dispatcher, as
``torch.ops.torch_foo.*``. The functions here are the same with type hints,
defaults and ``out=``.
"""

# torch comes first: _C finds libtorch because torch has loaded it.
from torch_foo import _load  # noqa: F401, I001
from torch_foo import nn, ops, reference
from torch_foo._build_info import BuildInfo, build_info
from torch_foo.ops import *  # noqa: F403

__all__ = ["BuildInfo", "__version__", "build_info", "nn", "ops", "reference"]
__all__ += ops.__all__

__version__ = build_info().torch_foo
