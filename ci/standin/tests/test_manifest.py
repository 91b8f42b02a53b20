"""The reader of pixi.toml is strict, and accepts this repository's own."""

from pathlib import Path

import pytest
from standin.manifest import Manifest, read_toml
from standin.progress import StandinError

ROOT = Path(__file__).parents[3]
HEAD = """\
[workspace]
name = "sample"
channels = ["conda-forge"]
platforms = ["linux-64"]
"""
REFUSED = "ci/pixi does not support this key"
WRONG = {
    "a = = 1": "not valid TOML: Invalid value (at line 1, column 5)",
    "": "workspace: this table is missing",
    '[workspace]\nname = "a"\nplatforms = ["linux-64"]': (
        "workspace: 'channels' is a required property"
    ),
    HEAD.replace("linux-64", "osx-64"): (
        "workspace.platforms: the stand-in has linux-64 only"
    ),
    HEAD.replace('"linux-64"', '{ platform = "linux-64", cudaa = "13" }'): (
        f"workspace.platforms[0].cudaa: {REFUSED}; did you mean 'cuda'?"
    ),
    HEAD + '[feature.a]\nplatforms = ["linux-64-cuda"]': (
        "feature.a.platforms: no platform 'linux-64-cuda'; "
        "did you mean 'linux-64'?"
    ),
    HEAD.replace("conda-forge", "bioconda"): (
        "workspace.channels: the stand-in has conda-forge only"
    ),
    HEAD + 'chanels = ["x"]': (
        f"workspace.chanels: {REFUSED}; did you mean 'channels'?"
    ),
    HEAD + 'version = "1"': f"workspace.version: {REFUSED}; ",
    HEAD + "[system-requirements]": f"system-requirements: {REFUSED}; ",
    HEAD + "[activation]": f"activation: {REFUSED}; ",
    HEAD + "[target.linux-64.tasks]": f"target: {REFUSED}; ",
    HEAD + "[feature.a.target.win.tasks]": f"feature.a.target: {REFUSED}; ",
    HEAD + "[dependencies]\npython = 3": (
        "dependencies.python: must be a string"
    ),
    HEAD + '[dependencies]\na = { git = "x" }': (
        f"dependencies.a.git: {REFUSED}"
    ),
    HEAD + '[pypi-dependencies]\na = { extras = ["x"] }': (
        f"pypi-dependencies.a.extras: {REFUSED}"
    ),
    HEAD + "[tasks]\na = 1": "tasks.a: 1 is not valid under any of the given",
    HEAD + '[tasks.a]\ncmd = ["x"]': "tasks.a.cmd: must be a string",
    HEAD + '[tasks.a]\ndescription = "x"': (
        "tasks.a: has neither cmd nor depends-on"
    ),
    **{
        HEAD + f'[tasks.a]\ncmd = "x"\n{key} = {value}': (
            f"tasks.a.{key}: {REFUSED}; "
        )
        for key, value in {
            "args": '["x"]',
            "clean-env": "true",
            "cwd": '"x"',
            "env": "{ X = '1' }",
            "inputs": '["x"]',
            "outputs": '["x"]',
        }.items()
    },
    HEAD + '[tasks.build]\ncmd = "x"\n[tasks.b]\ndepends-on = ["biuld"]': (
        "tasks.b.depends-on: no task 'biuld'; did you mean 'build'?"
    ),
    HEAD + '[tasks.a]\ncmd = "x"\ndefault-environment = "defalt"': (
        "tasks.a.default-environment: no environment 'defalt'; "
        "did you mean 'default'?"
    ),
    HEAD + '[tasks.a]\ndepends-on = [{ environment = "default" }]': (
        "tasks.a.depends-on[0]: 'task' is a required property"
    ),
    HEAD + '[feature.lint.dependencies]\n[environments]\na = ["lnt"]': (
        "environments.a.features: no feature 'lnt'; did you mean 'lint'?"
    ),
    HEAD + '[environments]\na = { solve-group = "x" }': (
        f"environments.a.solve-group: {REFUSED}; "
    ),
    HEAD + "[environments]\na = { no-default-feature = 1 }": (
        "environments.a.no-default-feature: must be true or false"
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_error_is_one_line_with_file_and_key(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pixi.toml"
    path.write_text(text)
    with pytest.raises(StandinError) as caught:
        Manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {WRONG[text]}")
    assert "\n" not in message


def test_features_and_defaults_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "pixi.toml"
    path.write_text(
        HEAD
        + """
        [dependencies]
        python = "3.11.*"
        [tasks]
        hello = "echo base"
        [feature.extra.dependencies]
        python = ">=3.10"
        [feature.extra.tasks]
        hello = "echo extra"
        [feature.extra.pypi-dependencies]
        rich = ">=13"
        [environments]
        extra = ["extra"]
        alone = { features = ["extra"], no-default-feature = true }
        """
    )
    environments = Manifest(path).environments
    specs = {name: e.specs for name, e in environments.items()}
    assert specs["default"] == [("python", "3.11.*")]
    assert specs["extra"] == [("python", "3.11.*"), ("python", ">=3.10")]
    assert specs["alone"] == [("python", ">=3.10")]
    assert environments["extra"].tasks["hello"].cmd == "echo extra"
    assert environments["extra"].pypi_specs == [("rich", ">=13")]


def test_this_repository() -> None:
    tasks = Manifest(ROOT / "pixi.toml").tasks
    for name, definitions in tasks.items():
        for task in definitions.values():
            assert task.description or name.startswith("_"), name
            assert task.default_environment in definitions, name
    wanted = "build test test-cpp test-consumers test-python test-packaging"
    wanted += " package demo lint build-cuda"
    assert set(wanted.split()) <= set(tasks)


def test_schema_of_pixi_is_in_force(tmp_path: Path) -> None:
    """The table of supported keys alone would let this pass."""
    path = tmp_path / "pixi.toml"
    path.write_text(HEAD + "[tasks.a]\ndepends-on = [[]]")
    with pytest.raises(StandinError, match="is not valid under any of the"):
        Manifest(path)
    assert read_toml(ROOT / "pixi.toml")["workspace"]["name"] == "torch-foo"
