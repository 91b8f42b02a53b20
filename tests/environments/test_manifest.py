"""The parser of pixi.toml is strict, and accepts this repository's own."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from standin.parser import load, read_toml
from standin.progress import StandinError

ROOT = Path(__file__).parents[2]
HEAD = """\
[workspace]
name = "sample"
channels = ["conda-forge"]
platforms = ["linux-64"]
"""
WRONG = {
    "a = = 1": "not valid TOML: Invalid value (at line 1, column 5)",
    "": "workspace: this table is missing",
    '[workspace]\nname = "a"\nplatforms = ["linux-64"]': (
        "workspace.channels: this key is missing"
    ),
    HEAD.replace("linux-64", "osx-64"): (
        "workspace.platforms: the stand-in has linux-64 only"
    ),
    HEAD.replace('"linux-64"', '{ platform = "linux-64", cudaa = "13" }'): (
        "workspace.platforms.cudaa: ci/pixi does not support this key; "
        "did you mean 'cuda'?"
    ),
    HEAD + '[feature.a]\nplatforms = ["linux-64-cuda"]': (
        "feature.a.platforms: no platform 'linux-64-cuda'; "
        "did you mean 'linux-64'?"
    ),
    HEAD.replace("conda-forge", "bioconda"): (
        "workspace.channels: the stand-in has conda-forge only"
    ),
    HEAD + 'chanels = ["x"]': (
        "workspace.chanels: ci/pixi does not support this key; "
        "did you mean 'channels'?"
    ),
    HEAD + "[system-requirements]": (
        "system-requirements: ci/pixi does not support this key"
    ),
    HEAD + "[dependencies]\npython = 3": (
        "dependencies.python: must be a table, not int"
    ),
    HEAD + '[dependencies]\na = { git = "x" }': (
        "dependencies.a.git: ci/pixi does not support this key"
    ),
    HEAD + '[dependencies]\na = { version = "1", channel = "b" }': (
        "dependencies.a.channel: the stand-in has conda-forge only"
    ),
    HEAD + '[pypi-dependencies]\na = { path = "x" }': (
        "pypi-dependencies.a.path: ci/pixi does not support this key"
    ),
    HEAD + "[tasks]\na = 1": "tasks.a: must be a table, not int",
    HEAD + "[tasks.a]\ncmd = 1": "tasks.a.cmd: must be a string, not int",
    HEAD + '[tasks.a]\ndescription = "x"': (
        "tasks.a: has neither cmd nor depends-on"
    ),
    HEAD + '[tasks.a]\ncmd = "x"\nclean-env = true': (
        "tasks.a.clean-env: ci/pixi does not support this key"
    ),
    HEAD + '[tasks.a]\ncmd = "x"\ninputs = [1]': (
        "tasks.a.inputs[0]: must be a string, not int"
    ),
    HEAD + '[tasks.build]\ncmd = "x"\n[tasks.b]\ndepends-on = ["biuld"]': (
        "tasks.b.depends-on: no task 'biuld'; did you mean 'build'?"
    ),
    HEAD + '[tasks.a]\ncmd = "x"\ndefault-environment = "defalt"': (
        "tasks.a.default-environment: no environment 'defalt'; "
        "did you mean 'default'?"
    ),
    HEAD + '[tasks.a]\ndepends-on = [{ environment = "default" }]': (
        "tasks.a.depends-on[0].task: this key is missing"
    ),
    HEAD + '[feature.lint.dependencies]\n[environments]\na = ["lnt"]': (
        "environments.a.features: no feature 'lnt'; did you mean 'lint'?"
    ),
    HEAD + '[environments]\na = { solve-group = "x" }': (
        "environments.a.solve-group: ci/pixi does not support this key"
    ),
    HEAD + "[environments]\na = { no-default-feature = 1 }": (
        "environments.a.no-default-feature: must be true or false, not int"
    ),
    HEAD + "[target.linux64.dependencies]": (
        "target.linux64: ci/pixi does not support this key; "
        "did you mean 'linux-64'"
    ),
    HEAD + "[feature.a.target.win-64.tasks.b]\nx = 1": (
        "feature.a.target.win-64.tasks.b.x: ci/pixi does not support this key"
    ),
    HEAD + "[activation]\nenv = { A = 1 }": (
        "activation.env.A: must be a string, not int"
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_error_is_one_line_with_file_and_key(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pixi.toml"
    path.write_text(text)
    with pytest.raises(StandinError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {WRONG[text]}")
    assert "\n" not in message


def test_features_targets_and_defaults_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "pixi.toml"
    path.write_text(
        HEAD
        + """
        [dependencies]
        python = "3.11.*"
        [tasks]
        hello = "echo base"
        [target.linux-64.dependencies]
        cmake = { version = ">=3", build = "h*" }
        [target.win.dependencies]
        windows-only = "*"
        [feature.extra.dependencies]
        python = ">=3.10"
        [feature.extra.tasks]
        hello = "echo extra"
        [feature.extra.pypi-dependencies]
        rich = { version = ">=13", extras = ["jupyter"] }
        [environments]
        extra = ["extra"]
        alone = { features = ["extra"], no-default-feature = true }
        """
    )
    manifest = load(path)
    specs = {name: e.specs for name, e in manifest.environments.items()}
    base = [("cmake", ">=3 h*"), ("python", "3.11.*")]
    assert specs["default"] == base
    assert specs["extra"] == [*base, ("python", ">=3.10")]
    assert specs["alone"] == [("python", ">=3.10")]
    extra = manifest.environments["extra"]
    assert extra.merged("tasks")["hello"].cmd == "echo extra"
    assert extra.pypi_specs == ["rich[jupyter]>=13"]


def test_this_repository() -> None:
    manifest = load(ROOT / "pixi.toml")
    tasks = manifest.tasks()
    for name, definitions in tasks.items():
        for task in definitions.values():
            assert task.description or task.hidden, name
            assert task.default_environment in definitions, name
    wanted = "build test test-cpp test-consumers test-python test-packaging"
    wanted += " package demo lint build-cuda"
    assert set(wanted.split()) <= set(tasks)


def test_this_repository_matches_the_schema_of_pixi() -> None:
    schema = Path(__file__).with_name("pixi-schema.json")
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    table = read_toml(ROOT / "pixi.toml")
    assert [error.message for error in validator.iter_errors(table)] == []
    table["tasks"]["test"]["descrption"] = "misspelt"
    assert [error.message for error in validator.iter_errors(table)] != []
