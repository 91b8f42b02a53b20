"""The operators, one class each, in one module for each family.

A new module in this folder is found by itself.
"""

import importlib
import pkgutil

from torch_foo.operators.base import Operator, Sample

__all__ = ["OPERATORS", "Operator", "Sample"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

#: Every operator by its name in ``torch.ops.torch_foo``, family by family. A
#: name that begins with _ is not public.
OPERATORS: dict[str, type[Operator]] = {
    operator.__name__: operator
    for operator in sorted(Operator.defined, key=lambda o: (o.file, o.line))
}
