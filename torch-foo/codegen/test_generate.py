"""What generate.py makes of a description, and says about a bad one."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODEGEN = Path(__file__).resolve().parent
PROJECT = CODEGEN.parent
ROOT = PROJECT.parent

for name in ("jinja2", "torchgen", "yaml"):
    pytest.importorskip(name)
for name in ("clang-format", "ruff"):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)

sys.path.insert(0, str(CODEGEN))
generate = importlib.import_module("generate")
OUTPUTS = list(generate.OUTPUTS.values())
PYTHON = [name for name in OUTPUTS if name.endswith(".py")]
STUB = "python/torch_foo/ops.pyi"


@pytest.fixture
def project(tmp_path):
    """A copy of what the generator reads and writes, with its settings."""
    for name in (".clang-format", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    modules = ("__init__", "_derivatives", "_fake", "_vmap")
    read = ["ops.yaml", *(f"python/torch_foo/{name}.py" for name in modules)]
    for name in [*read, *OUTPUTS]:
        copy = tmp_path / "torch-foo" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, copy)
    return tmp_path / "torch-foo"


@pytest.fixture
def run(project, capsys):
    """Runs the generator; returns its exit status and what it printed."""

    def run(*options):
        status = generate.main([f"--project={project}", *options])
        return status, *capsys.readouterr()

    return run


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def content(project):
    return {p: p.read_text() for p in project.rglob("*") if p.is_file()}


# --- the files and the description agree, or --check says where not ---------


def test_tree_is_up_to_date():
    command = [sys.executable, CODEGEN / "generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"generate: {len(OUTPUTS)} files are up to date\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "shown"),
    [
        (
            "ops.yaml",
            "float eps=1e-6",
            "float eps=0.5",
            "+    eps: float = 0.5,",
        ),
        (
            "ops.yaml",
            "c: a number.",
            "c: any number.",
            "+        c: any number.",
        ),
        ("ops.yaml", "[pointwise, ", "[core, ", '+    tags=["core", '),
        *((name, "enerated", "ENERATED", "ENERATED") for name in OUTPUTS),
    ],
    ids=["default", "doc", "tag", *OUTPUTS],
)
def test_edit(project, run, name, old, new, shown):
    edit(project / name, old, new)
    before = content(project)
    status, out, err = run("--check")
    assert status == 1
    assert any(
        line.startswith(("-", "+")) and shown in line
        for line in out.splitlines()
    ), out
    assert "pixi run generate" in err
    assert content(project) == before

    status, out, _ = run()
    assert status == 0
    assert "generate: wrote " in out
    repaired = content(project)
    assert repaired != before
    status, out, _ = run()
    assert (status, out) == (
        0,
        f"generate: {len(OUTPUTS)} files are up to date\n",
    )
    assert content(project) == repaired
    if name != "ops.yaml":
        assert (project / name).read_text() == (PROJECT / name).read_text()


def test_missing_file_is_written(project, run):
    shutil.rmtree(project / "src")
    status, out, _ = run("--check")
    assert status == 1
    assert "+++ src/generated/register.cpp" in out
    assert not (project / "src").exists()
    assert run()[0] == 0
    assert run("--check")[0] == 0


# --- what is made of a description that uses every feature ------------------

GOOD = """
- func: >-
    scale(Tensor x, Tensor? weight=None, int n=2, *, float eps=1e-6,
    bool fast=False, str mode="mean", int? seed=None) -> Tensor
  variants: out
  tags: [pointwise, core]
  fake: broadcast(x, weight)
  derivatives:
    x: product(grad, weight, x.shape)
    weight: rms_norm(grad, x, result, eps, mode)
  vmap: broadcast
  autocast: promote
  doc: &doc
    summary: Scale ``x`` by the mean, or by what ``mode`` says,
      in a sentence that needs two lines.
    args: {x: a tensor., weight: a tensor., n: a number., eps: a number.,
           fast: a bool., mode: a string., seed: a number.}
    out: a tensor.
    source: A paper.
    example: ">>> 1"

- func: >-
    rotate(Tensor q, Tensor k, float angle)
    -> (Tensor new_q, Tensor new_k)
  dispatch: {CPU: rotate_pair}
  inplace: {new_q: q, new_k: k}
  fake: rms_norm_backward(q, k)
  derivatives:
    q, k: rms_norm(grad_new_q, grad_new_k, angle, wants_q, wants_k)
  vmap: one_by_one
  doc:
    summary: Rotate ``q`` and ``k``.
    args: {q: a tensor., k: a tensor., angle: a number.}
    returns: Both.
    source: A paper.
    example: ">>> 1"

- func: largest(Tensor x) -> (Tensor values, Tensor index, Tensor count)
  internal_results: count
  fake: rms_norm_backward(x, x)
  derivatives:
    x: product(grad_values, index, values.shape)
  output_differentiability: [true, false, false]
  vmap: broadcast
  doc:
    summary: Find the largest.
    args: {x: a tensor.}
    source: A paper.
    example: ">>> 1"

- func: _halved(Tensor x) -> Tensor
  dispatch: {CompositeExplicitAutograd: halved}
  variants: out
  fake: broadcast(x, x)
- func: _version() -> str
  dispatch: {CompositeExplicitAutograd: version}
"""

MADE = {
    # Schemas, all of them, and their kernels.
    "src/generated/register.cpp": r"""
m.def("scale(Tensor x, Tensor? weight=None, int n=2, *, float eps=1e-6, bool
  fast=False, str mode=\"mean\", int? seed=None) -> Tensor");
m.def("scale.out(Tensor x, Tensor? weight=None, int n=2, *, float eps=1e-6,
  bool fast=False, str mode=\"mean\", int? seed=None, Tensor(a!) out) -> ()");
m.def("_scale(Tensor x, Tensor? weight, int n, float eps, bool fast, str mode,
  int? seed) -> Tensor");
m.def("_scale_out(Tensor x, Tensor? weight, int n, float eps, bool fast, str
  mode, int? seed, Tensor(a!) out) -> ()");
m.def("rotate(Tensor q, Tensor k, float angle)
  -> (Tensor new_q, Tensor new_k)");
m.def("rotate_(Tensor(a!) q, Tensor(b!) k, float angle) -> ()");
m.def("_rotate(Tensor q, Tensor k, float angle)
  -> (Tensor new_q, Tensor new_k)");
m.def("_rotate_(Tensor(a!) q, Tensor(b!) k, float angle) -> ()");
m.def("largest(Tensor x) -> (Tensor values, Tensor index,
  Tensor count)");
m.def("_largest(Tensor x) -> (Tensor values, Tensor index,
  Tensor count)");
m.def("_halved(Tensor x) -> Tensor");
m.def("_halved.out(Tensor x, *, Tensor(a!) out) -> ()");
m.def("__halved_out(Tensor x, Tensor(a!) out) -> ()");
m.def("_version() -> str");

void implement_cpu(StableLibrary& m) {
m.impl("scale", boxed<&torch_foo::scale>);
m.impl("scale.out", boxed<&torch_foo::scale_out>);
m.impl("_scale", boxed<&torch_foo::scale>);
m.impl("_scale_out", boxed<&torch_foo::scale_out>);
m.impl("rotate", boxed<&torch_foo::rotate_pair>);
m.impl("rotate_", boxed<&torch_foo::rotate_pair_>);
m.impl("_rotate", boxed<&torch_foo::rotate_pair>);
m.impl("_rotate_", boxed<&torch_foo::rotate_pair_>);
m.impl("largest", boxed<&torch_foo::largest>);
m.impl("_largest", boxed<&torch_foo::largest>);
}

void implement_cuda(StableLibrary& m) {
m.impl("scale", boxed<&torch_foo::scale>);
m.impl("scale.out", boxed<&torch_foo::scale_out>);
m.impl("_scale", boxed<&torch_foo::scale>);
m.impl("_scale_out", boxed<&torch_foo::scale_out>);
m.impl("largest", boxed<&torch_foo::largest>);
m.impl("_largest", boxed<&torch_foo::largest>);
}

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CompositeExplicitAutograd, m) {
m.impl("_halved", boxed<&torch_foo::halved>);
m.impl("_halved.out", boxed<&torch_foo::halved_out>);
m.impl("__halved_out", boxed<&torch_foo::halved_out>);
m.impl("_version", boxed<&torch_foo::version>);
}
""",
    "src/generated/operators.h": """
Tensor scale(const Tensor& x, const std::optional<Tensor>& weight,
  std::int64_t n, double eps, bool fast, const std::string& mode,
  const std::optional<std::int64_t>& seed);
void scale_out(const Tensor& x, const std::optional<Tensor>& weight,
  std::int64_t n, double eps, bool fast, const std::string& mode,
  const std::optional<std::int64_t>& seed, const Tensor& out);

std::tuple<Tensor, Tensor> rotate_pair(const Tensor& q, const Tensor& k,
  double angle);
void rotate_pair_(const Tensor& q, const Tensor& k, double angle);

std::tuple<Tensor, Tensor, Tensor> largest(const Tensor& x);

Tensor halved(const Tensor& x);
void halved_out(const Tensor& x, const Tensor& out);

std::string version();
""",
    "python/torch_foo/ops.py": """
__all__ = ["largest", "rotate", "rotate_", "scale"]

_scale = _ops._scale.default._op
_scale_out = _ops._scale_out.default._op
_rotate = _ops._rotate.default._op
_rotate_ = _ops._rotate_.default._op
_largest = _ops._largest.default._op

def scale(x: Tensor, weight: Tensor | None = None, n: int = 2, *, eps: float =
  1e-6, fast: bool = False, mode: str = "mean", seed: int | None = None, out:
  Tensor | None = None) -> Tensor:

_scale_out(x, weight, n, eps, fast, mode, seed, out)

_ops.scale.out(x, weight, n, eps=eps, fast=fast, mode=mode, seed=seed,
  out=out)

return _dispatch.scale(x, weight, n, eps, fast, mode, seed)
  return _scale(x, weight, n, eps, fast, mode, seed)

return _largest(x)[:2]

def rotate_(q: Tensor, k: Tensor, angle: float) -> None:
  \"\"\"Do what :func:`rotate` does, in place: q takes new_q, k takes new_k.

if is_special: _ops.rotate_.default(q, k, angle)
  else: _rotate_(q, k, angle) _mark_written(q, k)
""",
    STUB: """
def scale(x: Tensor, weight: Tensor | None = None, n: int = 2, *, eps: float =
  1e-6, fast: bool = False, mode: str = "mean", seed: int | None = None, out:
  Tensor | None = None) -> Tensor: ...

def rotate(q: Tensor, k: Tensor, angle: float) -> tuple[Tensor, Tensor]: ...
def rotate_(q: Tensor, k: Tensor, angle: float) -> None: ...
def largest(x: Tensor) -> tuple[Tensor, Tensor]: ...
""",
    "python/torch_foo/_dispatch.py": """
def _scale_fake(x, weight=None, n=2, eps=1e-6, fast=False, mode="mean",
  seed=None):
  return _fake.broadcast("scale", x, weight)

def _scale_save(ctx, inputs, output):
  x, weight, n, eps, fast, mode, seed = inputs
  result = output
  ctx.eps = eps
  ctx.mode = mode
  ctx.x_shape = x.shape
  wants_x, wants_weight = (*ctx.needs_input_grad, False, False)[:2]
  ctx.save_for_backward(weight if wants_x else None, x if wants_weight else
    None, result if wants_weight else None)

def _scale_backward(ctx, grad):
  wants_x, wants_weight = (*ctx.needs_input_grad, False, False)[:2]
  weight, x, result = ctx.saved_tensors
  grad_of_x = (_derivatives.product(grad, weight, ctx.x_shape) if wants_x else
    None)
  grad_of_weight = (_derivatives.rms_norm(grad, x, result, ctx.eps, ctx.mode)
    if wants_weight else None)
  return (grad_of_x, grad_of_weight, None, None, None, None, None)

_register.register("scale", has_raw=True, fake=_scale_fake,
  fake_out=_scale_fake_out, vmap=_vmap.broadcast,
  autocast=_register.promote, tags=["pointwise", "core"])

def _rotate_save(ctx, inputs, output):
  q, k, angle = inputs
  ctx.angle = angle

def _rotate_backward(ctx, grad_new_q, grad_new_k):
  wants_q, wants_k = ctx.needs_input_grad[:2]
  grad_of_q, grad_of_k = _derivatives.rms_norm(grad_new_q, grad_new_k,
    ctx.angle, wants_q, wants_k)
  return (grad_of_q, grad_of_k, None)

_register.register("rotate", has_raw=True, fake=_rotate_fake,
  written=["q", "k"], vmap=_vmap.one_by_one, tags=[])

def _largest_save(ctx, inputs, output):
  (x,) = inputs
  values, index, count = output
  ctx.mark_non_differentiable(index, count)
  ctx.values_shape = values.shape
  ctx.save_for_backward(index)

def _largest_backward(ctx, grad_values, grad_index, grad_count):
  (wants_x,) = ctx.needs_input_grad[:1]
  (index,) = ctx.saved_tensors
  grad_of_x = (_derivatives.product(grad_values, index, ctx.values_shape) if
    wants_x else None)
  return (grad_of_x,)

_register.register("_halved", has_raw=False, fake=__halved_fake,
  fake_out=__halved_fake_out, tags=[])
""",
    "docs/operators.md": """
torch_foo.rotate(q: Tensor, k: Tensor, angle: float) -> tuple[Tensor, Tensor]
  torch_foo.rotate_(q: Tensor, k: Tensor, angle: float) -> None

- `out`: where to put the result: a tensor.

| gradients | of `q`, `k` | | `vmap` | yes |
""",
}


def plain(text):
    """Without what clang-format and ruff decide about lines."""
    return re.sub(r'\s|,(?=\s*[)\]])|"\s+"', "", text)


@pytest.fixture
def made(project, run):
    (project / "ops.yaml").write_text(GOOD)
    status, _, err = run()
    assert (status, err) == (0, "")
    return project


@pytest.mark.parametrize("name", OUTPUTS)
def test_made(made, name):
    text = (made / name).read_text()
    for block in MADE[name].split("\n\n"):
        assert plain(block) in plain(text)
    if name == "src/generated/register.cpp":
        assert text.count("m.def") == MADE[name].count("m.def")
    if name == STUB or name.endswith(".md"):
        assert "_version" not in text


def test_made_python(made):
    for name in PYTHON:
        compile((made / name).read_text(), name, "exec")
    command = ["ruff", "check", "--no-cache", *PYTHON, STUB]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_made_stub(made):
    pytest.importorskip("mypy")
    # Without torch, which takes mypy long: Tensor is any type then.
    options = ["--strict", "--follow-imports=skip", "--cache-dir=/dev/null"]
    command = [sys.executable, "-m", "mypy", *options, STUB]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- what is said about a bad description -----------------------------------

BASE = """\
- func: f(Tensor x, float c) -> Tensor
  fake: broadcast(x, x)
  vmap: broadcast
  derivatives:
    x: product(grad, x, x.shape)
  doc:
    summary: A sentence.
    args:
      x: a tensor.
      c: a number.
    source: A paper.
    example: ">>> 1"
"""
FUNC = "f(Tensor x, float c) -> Tensor"
TWO = "f(Tensor x, float c) -> (Tensor y, Tensor z)"
FORMULA = "product(grad, x, x.shape)"
# What is replaced in BASE, by what, the line and a part of the message.
BAD = {
    # func
    "unclosed": (FUNC, "f(Tensor x", 1, "torchgen cannot parse 'f(Tensor x' "),
    "no-type": ("Tensor x", "x", 1, "torchgen cannot parse"),
    "no-result": (
        FUNC,
        "f(Tensor x) -> ",
        1,
        "write it as in native_functions",
    ),
    "no-results": ("-> Tensor", "-> ()", 1, "let it return a new tensor"),
    **{
        kind: ("float c", f"{kind} c", 1, f"c is a {kind}, which cannot cross")
        for kind in ("Scalar", "SymInt", "Tensor[]", "Generator", "int[]")
    },
    "type-of-result": ("-> Tensor", "-> int[]", 1, "the result is a int[]"),
    "in-place": (FUNC, "f_(Tensor(a!) x) -> ()", 1, "f_ is a variant; descr"),
    "annotated": ("Tensor x", "Tensor(a!) x", 1, "add `variants: out` or `inp"),
    "out=": (
        FUNC,
        "f.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)",
        1,
        "f.out is a variant; describe the operator that returns new tensors",
    ),
    "unnamed": (
        "-> Tensor",
        "-> (Tensor, Tensor)",
        1,
        "give the results names",
    ),
    "keyword": ("float c", "float in", 1, "'in' is no name"),
    "same-name": ("float c", "float x", 1, "'x' is no name, is there twice"),
    "reserved": ("float c", "float out", 1, "choose another"),
    "default": ("c)", "c=inf)", 1, "inf is no default for float c; write one"),
    "default-type": ("float c", "bool c=1", 1, "1 is no default for bool c"),
    "default-order": ("float c", "float c=1, int d", 1, "d comes after c, whi"),
    "func-missing": (
        f"- func: {FUNC}\n  fake",
        "- fake",
        1,
        "func is missing in an operator; add it",
    ),
    # derivatives
    "gradient-unknown": (
        "    x: p",
        "    y: p",
        5,
        "no tensor y; use one of x",
    ),
    "gradient-float": ("    x: p", "    c: p", 5, "no tensor c; use one of x"),
    "gradient-twice": ("    x: p", "    x, x: p", 5, "x is there twice"),
    "gradient-keyword": (
        "Tensor x, float c",
        "float c, *, Tensor x",
        5,
        "put it before the *",
    ),
    "formula-name": (
        FORMULA,
        "product(grad, u)",
        5,
        "u is unknown; use x, c, ",
    ),
    "formula-wants": (
        FORMULA,
        "product(wants_c)",
        5,
        "wants_c is unknown; use",
    ),
    "formula-attribute": (
        FORMULA,
        "product(grad, x.dtype)",
        5,
        "`x.dtype`; of a tensor only its .shape can be used",
    ),
    "formula-function": (
        FORMULA,
        "gradient(grad)",
        5,
        "does not call a function of _derivatives.py; use one of reduced, ",
    ),
    "formula-syntax": (FORMULA, "product(grad", 5, "(grad' is not Python; w"),
    "formula-grad": ("float c", "float grad", 5, "called grad, as a gradient"),
    "no-vmap": ("  vmap: broadcast\n", "", 3, "add `vmap: FUNCTION`, of _vmap"),
    "flags-number": (
        "  vmap",
        "  output_differentiability: [true, false]\n  vmap",
        3,
        "2 values, but f has 1 result",
    ),
    "flags-word": (
        "  vmap",
        "  output_differentiability: [yes]\n  vmap",
        3,
        "there is no 'yes'; use one of true, false",
    ),
    "internal-unknown": (
        FUNC,
        TWO + "\n  internal_results: x",
        2,
        "there is no 'x'; use one of y, z",
    ),
    "internal-first": (
        FUNC,
        TWO + "\n  internal_results: y",
        2,
        "are to be the last of y, z, in this order, and not all",
    ),
    "internal-all": (
        FUNC,
        TWO + "\n  internal_results: [y, z]",
        2,
        "are to be the last of y, z, in this order, and not all",
    ),
    # fake, vmap, autocast
    "no-fake": (
        "  fake: broadcast(x, x)\n",
        "",
        1,
        "add `fake: FUNCTION(...)`",
    ),
    "fake-function": (
        "broadcast(x, x)",
        "f(x)",
        2,
        "function of _fake.py; use",
    ),
    "fake-argument": (
        "broadcast(x, x)",
        "broadcast(y)",
        2,
        "no argument y; use",
    ),
    "vmap": ("vmap: broadcast", "vmap: f", 3, "no 'f'; use one of broadcast, "),
    "vmap-two": (
        "vmap: broadcast",
        "vmap: [broadcast, rms_norm]",
        3,
        "vmap is to be one word",
    ),
    "autocast": ("  vmap", "  autocast: f\n  vmap", 3, "use one of promote"),
    # dispatch, variants, inplace, tags
    "dispatch-key": (
        "  vmap",
        "  dispatch:\n    CPU: f\n    Cuda: f\n  vmap",
        5,
        "unknown dispatch key Cuda in dispatch; use one of CPU, CUDA, Comp",
    ),
    "kernel": (
        "  vmap",
        "  dispatch: {CPU: a-b}\n  vmap",
        3,
        "'a-b' is no C++",
    ),
    "variant": (
        "  vmap",
        "  variants: functional\n  vmap",
        3,
        "use one of out",
    ),
    "out-results": (FUNC, TWO + "\n  variants: out", 2, "use `inplace`"),
    "out-int": (
        "-> Tensor",
        "-> int\n  variants: out",
        2,
        "out is for one result, a Tensor, but f has int",
    ),
    "out-alone": (
        FUNC,
        "_f(int n) -> Tensor\n  variants: out",
        2,
        "_f takes no tensor to compare out with; remove it",
    ),
    "inplace-result": (
        "  vmap",
        "  inplace:\n    y: x\n  vmap",
        4,
        "unknown result y in inplace; use one of result",
    ),
    "inplace-argument": (
        "  vmap",
        "  inplace: {result: y}\n  vmap",
        3,
        "y is no Tensor argument, or is written twice; use each of x",
    ),
    "inplace-float": (
        "  vmap",
        "  inplace: {result: c}\n  vmap",
        3,
        "c is no T",
    ),
    "inplace-optional": (
        FUNC,
        "f(Tensor? x, float c) -> Tensor\n  inplace: {result: x}",
        2,
        "x is no Tensor argument",
    ),
    "inplace-missing": (
        FUNC,
        TWO + "\n  inplace:\n    y: x",
        2,
        "z is missing in inplace; add it",
    ),
    "inplace-twice": (
        FUNC,
        TWO + "\n  inplace: {y: x, z: x}",
        2,
        "is written tw",
    ),
    "tag": (
        "  vmap",
        "  tags: [core, pure]\n  vmap",
        3,
        "no 'pure'; use one of",
    ),
    # doc
    "no-doc": (
        BASE[BASE.index("  doc") :],
        "",
        1,
        "doc is missing in an operat",
    ),
    "doc-empty": (
        BASE[BASE.index("    summ") :],
        "",
        6,
        "doc is to be written",
    ),
    "doc-entry": (
        "    source: A paper.\n",
        "",
        6,
        "source is missing in doc; a",
    ),
    "doc-argument": (
        "      c: a number.\n",
        "",
        8,
        "c is missing in args; add",
    ),
    "doc-unknown": (
        "      c: a",
        "      d: a",
        10,
        "unknown argument d in args",
    ),
    "doc-out": (
        "  vmap",
        "  variants: out\n  vmap",
        7,
        "out is missing in doc",
    ),
    # the file
    "key": (
        "  vmap:",
        "  vmaps:",
        3,
        "unknown key vmaps in an operator; use on",
    ),
    "key-twice": (
        "  vmap",
        "  fake: f\n  vmap",
        3,
        "fake is there twice in an ",
    ),
    "yaml": ("  fake: ", "  fake: [", 3, "this is not YAML: "),
    "yaml-character": (
        "A paper",
        "A \a paper",
        11,
        "this is not YAML: special",
    ),
    "list": (
        BASE[BASE.index("    x:") :],
        "    - x\n",
        4,
        "derivatives is to be written as `key: value`",
    ),
    "mapping": (
        "  vmap",
        "  tags: {a: b}\n  vmap",
        3,
        "tags is to be a list of",
    ),
    "no-list": (
        "- func",
        "  func",
        1,
        "expected a list of operators, `- func: ",
    ),
    "lines": (f"func: {FUNC}", 'func: "f.o\\n(x"', 1, "f.o is a variant; "),
    "word": (BASE, "- f\n", 1, "an operator is to be written as `key: value`"),
    "empty": (BASE, "", 1, "expected a list of operators, `- func: ...`"),
    # names
    "twice": (
        BASE,
        BASE + BASE,
        13,
        "the name f, which is taken in line 1; ren",
    ),
    "raw-name": (
        BASE,
        "- func: _f() -> int\n" + BASE,
        2,
        "f needs the name _f, which is taken in line 1; rename or remove one",
    ),
    "raw-name-after": (
        BASE,
        BASE + "- func: _f() -> int\n",
        13,
        "_f needs the name _f, which is taken in line 1; rename or remove one",
    ),
    "in-place-name": (
        BASE,
        "- func: _f(Tensor x) -> Tensor\n"
        "  fake: broadcast(x, x)\n"
        "  inplace: {result: x}\n"
        f"- func: {FUNC}\n"
        "  fake: broadcast(x, x)\n"
        "  inplace: {result: x}\n" + BASE[BASE.index("  doc") :],
        4,
        "f needs the name _f_, which is taken in line 1; rename or remove one",
    ),
}


def test_base_is_good(project, run):
    (project / "ops.yaml").write_text(BASE)
    assert run()[::2] == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"), BAD.values(), ids=BAD
)
def test_bad(project, run, old, new, line, message):
    assert old in BASE
    (project / "ops.yaml").write_text(BASE.replace(old, new, 1))
    before = content(project)
    status, out, err = run()
    assert (status, out) == (1, "")
    assert err.startswith(f"ops.yaml:{line}: ")
    assert message in err
    assert err.count("\n") == 1
    assert content(project) == before


def test_all_errors_are_reported(project, run):
    text = (
        BASE.replace("vmap:", "vmaps:")
        + "- func: f(\n- func: _g(int[] n) -> int\n"
    )
    (project / "ops.yaml").write_text(text + BASE.replace("x: a", "y: a"))
    status, out, err = run()
    assert (status, out) == (1, "")
    starts = [line.split(" ")[0] for line in err.splitlines()]
    assert starts == [f"ops.yaml:{line}:" for line in (3, 13, 14, 23)]


def test_no_description(project, run):
    (project / "ops.yaml").unlink()
    status, out, err = run("--check")
    assert (status, out) == (1, "")
    assert err.startswith(f"generate: {project}/ops.yaml: No such file")
    assert err.count("\n") == 1


def test_no_formatter(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="clang-format is not installed; run"):
        generate.main([f"--project={project}"])
