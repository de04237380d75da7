"""What the installed package carries besides its modules."""

import configparser
import importlib
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sb3_hybrid_grpo
from sb3_hybrid_grpo import __version__

PACKAGE = Path(sb3_hybrid_grpo.__file__).parent


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert (PACKAGE / "version.txt").read_text(encoding="utf-8").strip() == __version__


def test_version_of_the_installed_package() -> None:
    try:
        installed = version("sb3-hybrid-grpo")
    except PackageNotFoundError:
        pytest.skip("runs from a folder, without an installation")
    assert installed == __version__


def test_setup_cfg_lists_every_package() -> None:
    path = PACKAGE.parent / "setup.cfg"
    if not path.is_file():
        pytest.skip("runs against an installed package, without its sources")
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    found = {".".join(init.parent.relative_to(PACKAGE.parent).parts) for init in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"sb3_hybrid_grpo.zoo_configs"}


def test_pins_can_be_installed_with_every_python_that_is_supported() -> None:
    path = PACKAGE.parent / "constraints.txt"
    if not path.is_file():
        pytest.skip("runs against an installed package, without its sources")
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        for pin in pins:
            try:
                supported = metadata(pin.name)["Requires-Python"]
            except PackageNotFoundError:  # of an extra
                continue
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                assert Requirement(f"python{supported or ''}").specifier.contains(f"{python}.99"), (str(pin), python)


def test_py_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_without_ray_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sb3_hybrid_grpo.distributed")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'RayVecEnv needs ray; install with: pip install "sb3-hybrid-grpo\[ray\]"'):
        importlib.import_module("sb3_hybrid_grpo.distributed")
