"""The lock: it fits pixi.toml, and nothing that is not in it is taken."""

import hashlib
import itertools
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

pytest.importorskip(
    "conda_package_streaming",
    reason="a real pixi is in use, not ci/pixi's stand-in",
)
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from standin import channel, downloads, lock
from standin.manifest import OWN, Manifest
from standin.progress import StandinError

LOCKS = ("channel", "own", "alone")


def entries(name: str) -> list[tuple[object, list[str]]]:
    """The requirements of a file of lock/ with their hashes."""
    text = (downloads.LOCK / f"{name}.txt").read_text()
    text = re.sub(r"#.*\n", "", text).replace("\\\n", "")
    return [
        (Requirement(head), re.findall(r"sha256:(\w{64})", rest))
        for head, _, rest in (line.partition("--") for line in text.split("\n"))
        if head
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_is_pinned_by_hashes_and_no_host(name):
    text = (downloads.LOCK / f"{name}.txt").read_text()
    assert "://" not in text
    for requirement, hashes in entries(name):
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert hashes, requirement


@pytest.mark.parametrize("python", lock.PYTHONS)
def test_the_lock_fits_pixi_toml_and_channel_toml(python):
    """If this fails, run `ci/pixi lock`."""
    here = {"python_version": python, "python_full_version": f"{python}.1"}

    def locked(name):
        found = {}
        for requirement, _ in entries(name):
            if not requirement.marker or requirement.marker.evaluate(here):
                assert requirement.name not in found
                (pin,) = requirement.specifier
                found[requirement.name] = pin.version
        return found

    about, manifest = channel.content(), Manifest(OWN)
    wanted = {"channel": set(), "own": {*about["own"]}}
    wanted["alone"] = {*itertools.chain(*about["wheels"].values())}
    for environment in manifest.environments.values():
        oldest = dict(environment.specs).get("python", "*").strip("*")
        if SpecifierSet(oldest).contains(python):
            requested = channel.requested(manifest, environment)
            wanted["channel"].update(channel.requirements(requested))
    for name, lines in wanted.items():
        versions = locked(name)
        for requirement in map(Requirement, lines):
            if not requirement.marker or requirement.marker.evaluate(here):
                project = requirement.name.replace("_", "-")
                assert requirement.specifier.contains(versions[project]), name


def test_sources_and_actions_are_pinned_by_commits():
    pattern = r"GIT_TAG [a-z0-9]|\buses: "
    command = ["git", "grep", "-hE", pattern, "--", "*.cmake", "*.md", "*.yml"]
    command += ["**/CMakeLists.txt"]
    lines = subprocess.check_output(command, text=True, cwd=OWN.parent)
    assert lines.count("GIT_TAG") >= 4
    for line in lines.splitlines():
        assert re.search(r"(GIT_TAG |@)[0-9a-f]{40}\)? # v?\d", line), line


def index(folder: Path) -> str:
    """A folder with two wheels, one of which needs the other; one's hash."""
    for name, needs in (("one", "Requires-Dist: two\n"), ("two", "")):
        info = f"{name}-1.dist-info"
        with zipfile.ZipFile(
            folder / f"{name}-1-py3-none-any.whl", "w"
        ) as file:
            head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
            wheel = (
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            file.writestr(f"{info}/METADATA", head + needs)
            file.writestr(f"{info}/WHEEL", wheel)
            file.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(
        (folder / "two-1-py3-none-any.whl").read_bytes()
    ).hexdigest()


@pytest.mark.parametrize(
    ("line", "asked", "message"),
    [
        ("two==1 --hash=sha256:{good}", "two", ""),
        ("two==1 --hash=sha256:{zero} --hash=sha256:{good}", "two", ""),
        (
            "two==1 --hash=sha256:{zero} --hash=sha256:{ones}",
            "two",
            "SHA-256 mismatch for two==1: expected {zero} or {ones}, got "
            "{good}",
        ),
        (
            "two==1 --hash=sha256:{good}",
            "one",
            "one is not in ci/standin/lock: run `ci/pixi lock`",
        ),
        (
            "two==1 --hash=sha256:{good}",
            "two>=2",
            "pixi.toml and ci/standin/lock disagree about two>=2: run "
            "`ci/pixi lock`",
        ),
    ],
)
def test_what_the_lock_does_not_allow(
    line, asked, message, tmp_path, monkeypatch
):
    hashes = {"good": index(tmp_path), "zero": "0" * 64, "ones": "1" * 64}
    (tmp_path / "channel.txt").write_text(line.format(**hashes))
    monkeypatch.setattr(downloads, "LOCK", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    target = tmp_path / "got"
    if not message:
        downloads.download_wheels(target, [asked])
        assert [file.name for file in target.iterdir()] == [
            "two-1-py3-none-any.whl"
        ]
        return
    with pytest.raises(StandinError) as caught:
        downloads.download_wheels(target, [asked])
    assert str(caught.value) == message.format(**hashes)
