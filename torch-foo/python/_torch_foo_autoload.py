"""The hook through which `import torch` registers torch.ops.torch_foo.

torch loads the entry points of the group `torch.backends` and fails if one of
them fails. A broken torch_foo must not break torch, so this module imports
nothing when it is loaded, and `load` never raises.
"""


def load() -> None:
    """Import torch_foo; if that fails, warn once and leave torch alone."""
    import sys

    if "torch_foo" in sys.modules:  # torch_foo is importing torch right now
        return
    try:
        import torch_foo  # noqa: F401  registers operators
    except Exception as error:
        import warnings

        message = (
            f"torch_foo is installed but could not be loaded: {error}\n"
            "torch works without it. TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns "
            "this attempt off."
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # python -W error
            print(message, file=sys.stderr)
