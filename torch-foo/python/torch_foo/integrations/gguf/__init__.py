"""Load GGUF files as models of transformers whose weights stay as they are.

>>> from torch_foo.integrations import gguf
>>> model = gguf.load("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP

Weights in the block formats of :func:`torch_foo.quantize` stay the bytes of the
file, which is mapped into memory and not read before it is needed.
"""

try:
    from torch_foo.integrations.gguf._load import load
    from torch_foo.integrations.gguf._reader import GGUFError
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "transformers":
        raise
    raise ImportError(
        "torch_foo.integrations.gguf needs transformers, which is not "
        "installed here: `pip install 'torch-foo[transformers]'` or "
        "`conda install transformers`"
    ) from error

__all__ = ["GGUFError", "load"]
