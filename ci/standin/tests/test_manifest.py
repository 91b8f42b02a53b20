"""The reader of pixi.toml is strict, and accepts this repository's own."""

import copy
import datetime
import itertools
import json
import re
from pathlib import Path

import pytest
from standin import manifest
from standin.manifest import REFUSED, Manifest
from standin.progress import StandinError

ROOT = Path(__file__).parents[3]
HEAD = """\
[workspace]
name = "sample"
channels = ["conda-forge"]
platforms = ["linux-64"]
"""
WRONG = {  # how the message begins, and the whole file
    "not valid TOML: Invalid value (at line 1, column 5)": "a = = 1",
    "workspace: 'channels' is a required property": (
        '[workspace]\nplatforms = ["linux-64"]'
    ),
    "workspace.channels: must be conda-forge alone": (
        HEAD.replace("conda-forge", "bioconda")
    ),
    "workspace.platforms: linux-64 is missing": (
        HEAD.replace("linux-64", "osx")
    ),
    f"workspace.platforms.cudaa: {REFUSED}; did you mean 'cuda'?": (
        HEAD.replace('"linux-64"', '{ platform = "linux-64", cudaa = "13" }')
    ),
    "environments.a: no 'lnt'; did you mean 'lint'?": (
        HEAD + '[feature.lint.tasks]\n[environments]\na = ["lnt"]'
    ),
    "tasks.a: 1 is not valid under any of the given": HEAD + "[tasks]\na = 1",
    "tasks.a.depends-on.0: [] is not valid under any of the given": (
        HEAD + "[tasks.a]\ndepends-on = [[]]"
    ),
    "tasks.a.depends-on.0: 'task' is a required property": (
        HEAD + '[tasks.a]\ndepends-on = [{ environment = "default" }]'
    ),
    "tasks.a: has neither cmd nor depends-on": (
        HEAD + '[tasks.a]\ndescription = "x"'
    ),
    "tasks.b.depends-on: no 'biuld'; did you mean 'build'?": (
        HEAD + '[tasks]\nbuild = "x"\nb = { depends-on = ["biuld"] }'
    ),
    "tasks.a.default-environment: no 'defalt'; did you mean 'default'?": (
        HEAD + '[tasks]\na = { cmd = "x", default-environment = "defalt" }'
    ),
    "workspace.platforms: linux-64 is ": (
        HEAD.replace('platforms = ["linux-64"]', "")
    ),
    "workspace.requires-pixi: 'banana' is no version; versions such as": (
        HEAD + 'requires-pixi = "banana"'
    ),
    "workspace.requires-pixi: '=>1' is no version (invalid operator": (
        HEAD + 'requires-pixi = "=>1"'
    ),
    "workspace.requires-pixi: '>=99', but this stands in for pixi 0.77": (
        HEAD + 'requires-pixi = ">=99"'
    ),
    "tasks.a.depends-on: it needs itself: a -> a": (
        HEAD + '[tasks.a]\ndepends-on = ["a"]'
    ),
    "tasks.a.depends-on: it needs itself: a -> b -> c -> a": (
        HEAD + '[tasks]\na = { depends-on = ["b"] }\n'
        'b = { depends-on = ["c"] }\nc = { depends-on = ["a"] }'
    ),
    "environments: '../../evil' is no name; small letters, digits": (
        HEAD + '[environments]\n"../../evil" = []'
    ),
    "dependencies: '--index-url=x' is no name; letters, digits": (
        HEAD + '[dependencies]\n"--index-url=x" = "*"'
    ),
    "pypi-dependencies: '-r' is no name; letters, digits": (
        HEAD + '[pypi-dependencies]\n-r = "*"'
    ),
    "feature.f.dependencies: 'a b' is no name; letters, digits": (
        HEAD + '[feature.f.dependencies]\n"a b" = "*"'
    ),
    "dependencies.python: '@ x' is no version; versions such as": (
        HEAD + '[dependencies]\npython = "@ x"'
    ),
    "tasks: 'a b' is no name; no white space and no '$'": (
        HEAD + '[tasks]\n"a b" = "true"'
    ),
    "tasks: '\\x1b[2J' is no name; no white space": (
        HEAD + '[tasks]\n"\\u001b[2J" = "true"'
    ),
    "tasks.a: a null character is not allowed": (
        HEAD + '[tasks]\na = "\\u0000"'
    ),
    f"dependencies.python: {REFUSED}; a str is expected": (
        HEAD + "[dependencies]\npython = 3"
    ),
    f"environments.a.no-default-feature: {REFUSED}; a bool is expected": (
        HEAD + "[environments]\na = { no-default-feature = 1 }"
    ),
    f"tasks.a.cmd: {REFUSED}; a str is expected": (
        HEAD + '[tasks.a]\ncmd = ["x"]'
    ),
}
# Where the tables of pixi's schema stand, and the keys that ci/pixi has there.
IN_FEATURE = "dependencies pypi-dependencies tasks"
IN_TASK = "cmd default-environment depends-on description"
TABLES = {
    ("", None): f"workspace environments feature {IN_FEATURE}",
    ("workspace", "Workspace"): (
        "channels description name platforms requires-pixi"
    ),
    ("workspace.platforms", "WorkspacePlatform"): "cuda name platform",
    ("environments.a", "Environment"): "features no-default-feature",
    ("feature.a", "Feature"): f"platforms {IN_FEATURE}",
    ("feature.a.tasks.b", "TaskInlineTable"): IN_TASK,
    ("tasks.a", "TaskInlineTable"): IN_TASK,
    ("tasks.a.depends-on", "DependsOn"): "environment task",
    ("dependencies.a", "MatchspecTable"): "",
    ("pypi-dependencies.a", "PyPIVersion"): "",
}


def read(folder: Path, text: str) -> Manifest:
    (folder / "pixi.toml").write_text(text)
    return Manifest(folder / "pixi.toml")


@pytest.mark.parametrize("message", WRONG)
def test_error_is_one_line_with_file_and_key(message, tmp_path):
    with pytest.raises(StandinError) as caught:
        read(tmp_path, WRONG[message])
    assert str(caught.value).startswith(f"{tmp_path}/pixi.toml: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("where", "name"), TABLES)
def test_every_other_key_of_pixis_schema_is_refused(
    where, name, tmp_path, monkeypatch
):
    schema = json.loads((ROOT / "ci/standin/pixi-schema.json").read_text())
    keys = set((schema["$defs"][name] if name else schema)["properties"])
    supported = set(TABLES[where, name].split())
    assert keys > supported
    for key in keys - supported:
        table = {key: 1}
        for part in filter(None, reversed(where.split("."))):
            table = {part: table}
        monkeypatch.setattr(manifest, "read_toml", lambda path, t=table: t)
        with pytest.raises(StandinError) as caught:
            Manifest(tmp_path / "pixi.toml")
        at = f"{where}.{key}".lstrip(".")
        reason = "(did you mean|there is)" if supported else "a str is expected"
        message = f"pixi.toml: {re.escape(at)}: {REFUSED}; {reason}"
        assert re.search(message, str(caught.value))


SAMPLE = """
[environments]
a = { features = ["f"], no-default-feature = true }
[feature.f]
platforms = ["linux-64"]
dependencies = { python = "*" }
[feature.f.tasks.t]
cmd = "x"
depends-on = ["u"]
default-environment = "a"
description = "y"
[tasks]
u = "x"
v = { cmd = "y", depends-on = [{ task = "u", environment = "a" }] }
[pypi-dependencies]
ninja = ">=1"
"""
STRANGE = [1, 1.5, True, "", "x", "a\0b", "$x", "-x", "../x", [], [1], ["x"]]
STRANGE += [[[]], {}, {"a": 1}, {"": 1}, {"a": {}}, datetime.date(2020, 1, 1)]


def places(table, above=()):
    """The path to each value in a table, and in the tables within."""
    keys = range(len(table)) if isinstance(table, list) else table
    for key in keys if isinstance(table, dict | list) else ():
        yield (*above, key)
        yield from places(table[key], (*above, key))


def test_a_strange_key_or_value_anywhere_is_one_line(tmp_path, monkeypatch):
    """A thousand wrong files; some of the changes are harmless."""
    refused = 0
    original = manifest.tomllib.loads(HEAD + SAMPLE)
    for place, strange in itertools.product(places(original), STRANGE):
        value, key = copy.deepcopy(original), copy.deepcopy(original)
        *above, last = place
        for table in (value, key):
            monkeypatch.setattr(manifest, "read_toml", lambda _, t=table: t)
            for part in above:
                table = table[part]
            if table is key and isinstance(strange, str) and last in table:
                table[strange] = table.pop(last)
            else:
                table[last] = strange
            message = ""
            try:
                Manifest(tmp_path / "pixi.toml")
            except StandinError as error:
                message = str(error)
                refused += 1
            assert message.startswith(f"{tmp_path}/pixi.toml: "[: len(message)])
            assert "\n" not in message
    assert refused > 1000


def test_features_and_defaults_are_merged(tmp_path):
    text = """
        [dependencies]
        python = "3.11.*"
        [tasks]
        hello = "echo base"
        [feature.extra]
        dependencies = { python = ">=3.10" }
        pypi-dependencies = { rich = ">=13" }
        tasks = { hello = "echo extra" }
        [environments]
        extra = ["extra"]
        alone = { features = ["extra"], no-default-feature = true }
    """
    environments = read(tmp_path, HEAD + text).environments
    default, extra, alone = environments.values()
    inner = [("python", ">=3.10"), ("rich", ">=13")]
    assert default.specs == [("python", "3.11.*")]
    assert extra.specs == [("python", "3.11.*"), *inner]
    assert alone.specs == inner
    assert extra.tasks["hello"].cmd == "echo extra"


def test_this_repository():
    tasks = Manifest(ROOT / "pixi.toml").tasks
    for name, definitions in tasks.items():
        for task in definitions.values():
            assert task.description or name.startswith("_"), name
            assert task.default_environment in definitions, name
    wanted = "build test test-cpp test-consumers test-python test-packaging"
    wanted += " package demo lint build-cuda"
    assert set(wanted.split()) <= set(tasks)
