import sys
from pathlib import Path

import pytest

from monograph.errors import MissingPackageError, SourceError
from monograph.models.factories import import_factory

MODULE = """
import os
answer = 42
class Model: pass
def build(size=1): return ["built"] * size
def _hidden(): pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of its own; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_finds_a_function_and_a_class_in_the_current_directory_and_leaves_the_path_as_it_was(folder: Path):
    (folder / "factories_mine.py").write_text(MODULE)
    path = list(sys.path)
    assert import_factory("py:factories_mine:build")(size=2) == ["built", "built"]
    assert import_factory("py:factories_mine:Model").__name__ == "Model"
    assert sys.path == path


def test_finds_a_function_in_a_package(folder: Path):
    (folder / "factories_package").mkdir()
    (folder / "factories_package" / "inner.py").write_text(MODULE)
    assert import_factory("py:factories_package.inner:build")() == ["built"]


def test_an_installed_module_goes_before_a_file_of_the_same_name(folder: Path):
    (folder / "numpy.py").write_text("array = None")
    (folder / "wave.py").write_text("open = None")
    assert import_factory("py:wave:open") is not None


@pytest.mark.parametrize(
    "spec",
    ["factories_mine:build", "py:factories_mine", "py::build", "py:a b:build", "py:factories_mine:", "py:m:f:g", "py:../m:f"],
)
def test_a_malformed_spec_says_the_form(folder: Path, spec: str):
    with pytest.raises(SourceError, match=r"names no factory, expected py:package\.module:factory"):
        import_factory(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("py:no_such_module_here:build", r"no module 'no_such_module_here' is installed or lies in .*: run from the folder"),
        ("py:factories_mine:bild", r"module 'factories_mine' has no 'bild'; it has Model, build"),
        ("py:factories_mine:answer", r"'answer' is of type int, expected a function or a class"),
        ("py:factories_mine.inner:build", r"importing factories_mine.inner failed|no module 'factories_mine.inner'"),
        ("py:factories_needy:build", r"factories_needy needs module 'not_there_at_all', which is not installed: install it"),
        ("py:factories_broken:build", r"importing factories_broken failed with ZeroDivisionError: division by zero"),
        ("py:factories_syntax:build", r"importing factories_syntax failed with SyntaxError"),
    ],
)
def test_what_is_missing_or_fails_is_said(folder: Path, spec: str, message: str):
    (folder / "factories_mine.py").write_text(MODULE)
    (folder / "factories_needy.py").write_text("import not_there_at_all")
    (folder / "factories_broken.py").write_text("1 / 0")
    (folder / "factories_syntax.py").write_text("def build(:")
    path = list(sys.path)
    with pytest.raises(SourceError, match=message) as caught:
        import_factory(spec)
    assert "\n" not in str(caught.value)
    assert sys.path == path


def test_an_exception_inside_the_module_is_chained(folder: Path):
    (folder / "factories_broken.py").write_text("1 / 0")
    with pytest.raises(SourceError) as caught:
        import_factory("py:factories_broken:build")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_of_ours_inside_the_module_passes_as_it_is(folder: Path):
    (folder / "factories_ours.py").write_text(
        "from monograph.errors import MissingPackageError\nraise MissingPackageError('pip install it')"
    )
    with pytest.raises(MissingPackageError, match=r"^pip install it$"):
        import_factory("py:factories_ours:build")
