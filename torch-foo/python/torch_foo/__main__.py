"""What a bug report about torch_foo needs: `python -m torch_foo`.

It prints the versions, paths and build options of the loaded libraries, and
tests each operator on small tensors against its formula in plain PyTorch, on
the CPU and, if the operators run there, on CUDA and the device foo. The exit
status is 1 if an operator fails.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import argparse
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import torch_foo
from torch_foo.operators import OPERATORS, Operator


def loaded_library(name: str) -> str:
    """Return the path of a shared library of this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return "unknown: there is no /proc/self/maps here"
    found = re.search(rf"(/.*/{re.escape(name)}\S*)$", maps, re.MULTILINE)
    return found[1] if found else f"no {name} is loaded"


def autoload() -> str:
    """Return whether `import torch` alone registers the operators."""
    points = importlib.metadata.entry_points(group="torch.backends")
    if "torch_foo" not in points.names:
        return "no: the package's entry point is not installed"
    value = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
    if value != "1":
        return f"no: TORCH_DEVICE_BACKEND_AUTOLOAD is {value!r}"
    return "yes"


def gpus() -> str:
    """Return the names and compute capabilities of the GPUs."""
    return ", ".join(
        f"{name} ({major}.{minor})"
        for i in range(torch.cuda.device_count())
        for name in [torch.cuda.get_device_name(i)]
        for major, minor in [torch.cuda.get_device_capability(i)]
    )


def no_cuda() -> str:
    """Return why no operator runs on CUDA and what to do, or nothing."""
    if torch.version.cuda is None:
        return "this torch has no CUDA: conda install 'pytorch=*=cuda*'"
    try:
        torch.cuda.init()
    except RuntimeError as error:  # no GPU, no driver or an old one
        return str(error).splitlines()[0]
    if not torch_foo.build_info().cuda:
        return "foo_core has no CUDA: conda install 'libfoo-core=*=cuda*'"
    return ""


def device_foo() -> str:
    """Return whether the device "foo" is enabled, or what enables it."""
    if torch_foo.device.is_enabled():
        return "enabled"
    reason = torch_foo.device.obstacle()
    return reason or "off: torch_foo.device.enable() or TORCH_FOO_DEVICE=1"


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str]:
    info = torch_foo.build_info()
    return {
        "torch_foo": f"{info.torch_foo} ({Path(torch_foo.__file__).parent})",
        "operators": loaded_library("libtorch_foo.so"),
        "foo_core": f"{info.foo_core} ({loaded_library('libfoo_core.so')})",
        "SIMD target": info.simd_target,
        "CUDA in foo_core": "yes" if info.cuda else "no",
        "torch": f"{info.torch} ({Path(torch.__file__).parent})",
        "CUDA in torch": torch.version.cuda or "no",
        "GPUs": gpus() or "none that torch can use",
        "CUDA operators": f"no: {no_cuda()}" if no_cuda() else "yes",
        "device foo": device_foo(),
        "transformers": version("transformers"),
        "threads": str(torch.get_num_threads()),
        "autoload": autoload(),
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
    }


def tensors(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def check_close(part: Tensor, want: Tensor) -> None:
    """Compare as assert_close does, for results of any size.

    The error of a sum is relative to its terms, which may nearly cancel.
    """
    relative = {torch.float32: 1.3e-6, torch.bfloat16: 1.6e-2}
    rtol = relative.get(want.dtype, 0.0)
    atol = 0.0
    if rtol and want.numel():
        atol = 1e-5 * max(1.0, want.nan_to_num(0, 0, 0).abs().max().item())
    torch.testing.assert_close(part, want, rtol=rtol, atol=atol, equal_nan=True)


def failure(operator: type[Operator], device: str) -> str:
    """What is wrong with an operator: nothing, it is hoped."""
    function: Callable[..., Tensor] = getattr(torch_foo, operator.__name__)
    for sample in operator.samples():
        for dtype in (torch.float32, torch.bfloat16):
            if sample.is_large:
                continue
            args = sample.args(dtype, device)
            try:
                got = tensors(function(*args, **sample.named))
                expected = operator.reference(*args, **sample.named)
                for part, want in zip(got, tensors(expected), strict=True):
                    check_close(part, want)
            except Exception as error:
                return f"{dtype}: {type(error).__name__}: {error}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_foo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    for name, value in facts().items():
        print(f"{name + ':':<18}{value}")
    start = time.perf_counter()
    failures = 0
    devices = ["cpu"]
    devices += [] if no_cuda() else ["cuda"]
    devices += ["foo"] if torch_foo.device.is_enabled() else []
    for device in devices:
        print(f"\n{device}, float32 and bfloat16 against plain PyTorch:")
        for name, operator in OPERATORS.items():
            if operator.is_public():
                wrong = failure(operator, device)
                failures += bool(wrong)
                print(f"  {name:<24}{'FAILED: ' + wrong if wrong else 'ok'}")
    seconds = time.perf_counter() - start
    verdict = f"{failures} FAILED" if failures else "all ok"
    print(f"{verdict} ({seconds:.2f} s)")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
