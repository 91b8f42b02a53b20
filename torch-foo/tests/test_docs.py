"""The examples in docstrings and tutorials work, and functions have them."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch_foo


@pytest.mark.parametrize("name", ["_build_info", "nn", "ops"])
def test_examples(name):
    import torch

    module = importlib.import_module(f"torch_foo.{name}")
    globs = {"torch": torch, "torch_foo": torch_foo}
    results = doctest.testmod(module, extraglobs=globs)
    assert results.failed == 0
    assert results.attempted > 0


@pytest.mark.parametrize("name", ["tutorial", "transformers"])
def test_tutorials(name):
    """Run all blocks of a file, in order, as one session."""
    if name == "transformers":
        pytest.importorskip("transformers")
    file = Path(__file__).parents[1] / "docs" / f"{name}.md"
    text, blocks = re.subn("^```.*$", "", file.read_text(), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(
        text, {"__name__": "__main__"}, name, str(file), 0
    )
    # torch.compile still refers to the names when the session is over.
    results = doctest.DocTestRunner().run(examples, clear_globs=False)
    assert results.failed == 0
    assert results.attempted >= blocks // 2 > 0


@pytest.mark.parametrize("name", torch_foo.ops.__all__)
def test_operators_are_documented(name):
    doc = getattr(torch_foo, name).__doc__
    if name.endswith("_"):  # of which the other form tells
        assert "in place" in doc
        assert "Not differentiable" in doc
        return
    for section in ("Args:", "Returns:", "Raises:", "Source:", ">>> "):
        assert section in doc
