"""What generate.py makes of the operators, and says about wrong ones."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

CODEGEN = Path(__file__).resolve().parent
PROJECT = CODEGEN.parent

pytest.importorskip("torchgen")
if shutil.which("clang-format") is None:
    pytest.skip("clang-format is not installed", allow_module_level=True)

sys.path.insert(0, str(CODEGEN))
generate = importlib.import_module("generate")
UP_TO_DATE = f"generate: {len(generate.OUTPUTS)} files are up to date\n"
LINEAR = "python/torch_foo/operators/linear.py"


@pytest.fixture
def project(tmp_path):
    """A copy of what the generator reads and writes, with its settings."""
    shutil.copy(PROJECT.parent / ".clang-format", tmp_path)
    copy = tmp_path / "torch-foo"
    operators = "python/torch_foo/operators"
    shutil.copytree(PROJECT / operators, copy / operators)
    for name in generate.OUTPUTS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, copy / name)
    return copy


@pytest.fixture
def run(project, capsys):
    """Runs the generator; returns its exit status and what it printed."""

    def run(*options):
        status = 0
        try:
            generate.main(options, project)
        except SystemExit as error:  # of which a text is printed by Python
            status = error.code
            if isinstance(status, str):
                print(status, file=sys.stderr)
        return int(status != 0), *capsys.readouterr()

    return run


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --- the files and the classes agree, or --check says where not -------------


def test_tree_is_up_to_date(capsys):
    generate.main(["--check"])
    assert UP_TO_DATE in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "old", "new", "shown"),
    [
        (LINEAR, "Tensor x, T", "Tensor x, *, T", "linear(Tensor x, *, Ten"),
        (LINEAR, "None means zeros.", "or None.", "- `bias`: (n,), of x's d"),
        *(
            (name, "enerated", "ENERATED", "ENERATED")
            for name in generate.OUTPUTS
        ),
    ],
)
def test_edit(project, run, name, old, new, shown):
    edit(project / name, old, new)
    before = {n: (project / n).read_text() for n in generate.OUTPUTS}
    status, out, err = run("--check")
    assert status == 1
    changed = [line for line in out.split("\n") if line[:1] in ("-", "+")]
    assert any(shown in line for line in changed)
    assert "ci/pixi run generate" in err
    assert before == {n: (project / n).read_text() for n in generate.OUTPUTS}
    status, out, _ = run()
    assert status == 0
    assert "generate: wrote " in out
    assert run()[:2] == (0, UP_TO_DATE)
    if name in generate.OUTPUTS:
        assert (project / name).read_text() == (PROJECT / name).read_text()


def test_missing_file_is_written(project, run):
    shutil.rmtree(project / "src")
    assert "+++ src/generated/register.cc" in run("--check")[1]
    assert not (project / "src").exists()
    assert run()[0] == run("--check")[0] == 0


def test_no_formatter(project, run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "no clang-format here; use" in run()[2]


# --- what is made of an operator that uses every feature --------------------

EVERY = '''
import torch
from torch_foo.operators.base import Operator, Sample, one_by_one

class rotate(Operator):
    """Rotate ``q`` and ``k``.

    Args:
        q: a tensor, described in
            two lines.
        k: a tensor.
        weight: a tensor.
        n: a number.
        eps: a number.
        mode: a word.

    Returns:
        Both.

    Source: a paper.

    >>> 1
    """

    schema = (
        "rotate(Tensor q, Tensor k, Tensor? weight=None, int n=2, *, "
        'float? eps=1e-6, str mode="mean") '
        "-> (Tensor new_q, Tensor new_k, Tensor count)"
    )
    inplace = {"new_q": "q", "new_k": "k", "count": "k"}
    internal_results = ("count",)
    vmap = staticmethod(one_by_one)
    reference = staticmethod(lambda q, k, *_, **named: (q, k))
    fake = staticmethod(lambda q, k, *_: (q, k, k))
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(lambda ctx, q, k, c: (q, k, None, None, None, None))
    samples = staticmethod(lambda: [Sample("one", (3,), (3,), eps=None)])
'''
MADE = {
    "src/generated/register.cc": [
        'm.def("_rotate(Tensor q, Tensor k, Tensor? weight, int n, float? eps, '
        'str mode) -> (Tensor new_q, Tensor new_k, Tensor count)");',
        'm.def("rotate_(Tensor(a!) q, Tensor(b!) k, Tensor? weight=None, '
        'int n=2, *, float? eps=1e-6, str mode=\\"mean\\") -> ()");',
        'm.impl("_rotate_", boxed<&rotate_>);',
    ],
    "src/generated/operators.h": [
        "std::tuple<Tensor, Tensor, Tensor> rotate(const Tensor& q, "
        "const Tensor& k, const std::optional<Tensor>& weight, std::int64_t n, "
        "const std::optional<double>& eps, const std::string& mode);",
    ],
    "python/torch_foo/ops.py": [
        "def rotate(q: Tensor, k: Tensor, weight: Tensor | None = None, "
        'n: int = 2, *, eps: float | None = 1e-6, mode: str = "mean") '
        "-> tuple[Tensor, Tensor]:",
        "return _rotate(q, k, weight, n, eps, mode)[:2]",
        "_ops.rotate_.default(q, k, weight, n, eps=eps, mode=mode)",
    ],
    "docs/operators.md": [
        "| [`rotate`](#rotate) | Rotate `q` and `k`. |",
        "- `q`: a tensor, described in two lines.",
    ],
}


def test_made(project, run):
    (project / "python/torch_foo/operators/every.py").write_text(EVERY)
    status, _, err = run()
    assert (status, err) == (0, "")
    for name, expected in MADE.items():
        text = (project / name).read_text()
        for part in expected:  # but for where formatters break lines
            assert squeezed(part) in squeezed(text), part


def squeezed(text):
    return re.sub(r'[\s"]|,(?=\s*\))', "", text)


# --- wrong classes: a line each, with file and line -------------------------

# What is changed in linear.py, what stands in the line named, the message.
BAD = [
    ("-> Tensor", "=> Tensor", "schema =", "torchgen cannot parse 'linear("),
    ("(Tensor x", "(Tensor(a!) x", "schema =", "linear is a variant; use `"),
    ("Tensor x,", "Scalar x,", "schema =", "x is a Scalar, which cannot cross"),
    ("linear(T", "matmul(T", "schema =", "the schema is of matmul, not linear"),
    ("Tensor x,", "Tensor if,", "schema =", "'if' is a keyword of Python"),
    ("Tensor x,", "Tensor out,", "schema =", "'out' has a meaning in gener"),
    ("Tensor x,", "Tensor weight,", "schema =", "'weight' occurs twice"),
    ("bias=None", "bias=none", "schema =", "none is not a literal of Python"),
    ("-> Tensor", "-> ()", "schema =", "it returns nothing; let it return"),
    ("-> Tensor", "-> (Tensor, Tensor)", "schema =", "several results need"),
    ('("out",)', '("outt",)', "variants =", "'outt' is none of 'out'"),
    ('("out",)', '("out")', "variants =", "'out' is a str, expected a tuple"),
    ('"row"', '"plain"', "def samples", "samples of different names, found"),
    ("(3, 5), (4, 5))", "[3, 5], (4, 5))", "def samples", "shape as a tuple"),
    ('"promote"', '"cast"', "autocast =", "'cast' is none of '', 'promote'"),
    ("sizes =", "size =", "size =", "unknown attribute size; see class Oper"),
    ("def fake", "def _fake", "class linear", "fake is missing: without it"),
    ("def samples", "def _s", "class linear", "samples is missing: tests take"),
    ("def backward", "def _b", "class linear", "setup_context and backward go"),
    ("bias: (n,)", "bios: (n,)", "class linear", "Args: x, weight, bios, out;"),
    ("Source: ", "From: ", "class linear", "the docstring has no Source"),
    ("flat.sum(0) if wants_bias else None,", "", "def backward", "'bias': "
     "backward returns 2 values, expected 3: x, weight, bias"),
    ("flat.sum(0)", "flat.sum()", "def backward", "'bias': backward returns "
     "float64 () for bias, expected float64 (4,)"),
    ("-1], n))", "-1], n + 1))", "def fake", "'bias': fake returns "
     "float64 (3, 5) for result, expected float64 (3, 4)"),
    ('"plain", (3, 5)', '"plain", (3, 6)', "def reference", "'plain': "
     "reference raises RuntimeError: mat1 and mat2 shapes"),
    ('"plain", (3, 5), (4, 5)', '"plain", (3, 5)', "def samples", "'plain': "
     "weight is missing"),
    ("nk, n ->", "nk ->", "dims =", "dims are '...k, nk -> ...n', expected a "
     "term for each of x, weight, bias"),
    ("nk, n ->", "nkm, n ->", "dims =", "but weight has 2 dimensions"),
    ('"x bias"', '"x bios"', "linear_in =", "'bios' is none of 'x', 'weight'"),
    ("class linear", "class two(Operator):\n    pass\nclass linear",
     "class two", "two: schema is missing: write it as in"),
    ("class linear", "import nothing\nclass linear", "import nothing",
     "ModuleNotFoundError: No module named 'nothing'"),
    ("class linear", "def:\nclass linear", "def:", "SyntaxError: invalid"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "message"), BAD)
def test_bad(project, run, old, new, at, message):
    path = project / LINEAR
    edit(path, old, new)
    lines = path.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if at in text)
    status, out, err = run()
    assert (status, out) == (1, "")
    assert err.count("\n") == 1, err
    assert err.startswith(f"operators/linear.py:{line}: ")
    assert message in err


def test_name_that_is_taken(project, run):
    copy = project / "python/torch_foo/operators/second.py"
    shutil.copy(project / LINEAR, copy)
    status, _, err = run()
    assert status == 1
    assert re.fullmatch(
        r"operators/second.py:(\d+): linear: the name linear is taken in "
        r"operators/linear.py:\1\n",
        err,
    )


@pytest.mark.parametrize("name", ["nn", "print", "build_info", "quantize_x"])
def test_name_of_something_else(project, run, name):
    path = project / LINEAR
    path.write_text(re.sub(r"\blinear\b(?=\()", name, path.read_text()))
    (project / "python/torch_foo/nn.py").touch()
    assert (f"torch_foo.{name} is something" in run()[2]) == (name[0] != "q")


def test_all_mistakes_are_reported(project, run):
    for name in ("linear", "quantize"):
        edit(project / f"{LINEAR[:-9]}{name}.py", "def fake", "def _fake")
    assert run()[2].count("fake is missing") == 2
