"""Let the Llama-like models of transformers compute with torch_foo.

>>> from torch_foo.integrations.transformers import patch, unpatch
>>> print(patch(model))  # doctest: +SKIP

A module is recognized by what it computes: its `forward`, and all that this
reaches, must have the code of Llama's in the installed transformers, as in
Mistral, Qwen2, Qwen3, SmolLM3 and many more, which transformers generates from
Llama's source. Everything else is left alone. Only `forward` is replaced: types
of modules, parameters, state_dict, hooks and configuration stay as they are.
Where another library has replaced a module's tensors, the module computes as
before.

Results differ by rounding only. In float32 that is the last bits. In 16 bits,
transformers rounds after each step and torch_foo once per operator.

The outputs of norms and gates are not kept for the backward; it recomputes
them.
"""

try:
    from torch_foo.integrations.transformers._patch import patch, unpatch
    from torch_foo.integrations.transformers._report import Report
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "transformers":
        raise
    raise ImportError(
        "torch_foo.integrations.transformers needs transformers, which is not "
        "installed here: `pip install 'torch-foo[transformers]'` or "
        "`conda install transformers`"
    ) from error

__all__ = ["Report", "patch", "unpatch"]
