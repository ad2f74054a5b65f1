"""Find the function that ``py:package.module:factory`` names; models and data are both given that way."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from monograph.errors import MonographError, SourceError

FACTORY_PREFIX = "py:"


def import_factory(spec: str) -> Callable[..., Any]:
    """Return the callable that ``py:package.module:factory`` names; it is not called.

    The current directory is searched last, so that a file beside the user is found and yet hides no installed package.

    Raises:
        SourceError: the text has another form, or the module or the attribute is missing, fails, or cannot be called.
    """
    module_name, _, attribute = spec.removeprefix(FACTORY_PREFIX).partition(":")
    if not spec.startswith(FACTORY_PREFIX) or not attribute.isidentifier() or not _is_dotted_name(module_name):
        raise SourceError(f"{spec!r} names no factory, expected py:package.module:factory, for example py:my_models:build")
    module = _import_module(module_name, spec)
    if not hasattr(module, attribute):
        found = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise SourceError(f"{spec}: module {module_name!r} has no {attribute!r}; it has {', '.join(found) or 'no functions'}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise SourceError(f"{spec}: {attribute!r} is of type {type(factory).__name__}, expected a function or a class")
    return factory  # type: ignore[no-any-return]  # callable() tells nothing of the signature


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _import_module(name: str, spec: str) -> ModuleType:
    # A file written a moment ago, by a notebook for example, is not yet in the import system's listing of its folder.
    importlib.invalidate_caches()
    try:
        with _current_directory_last():
            return importlib.import_module(name)
    except MonographError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SourceError(
                f"{spec}: no module {error.name!r} is installed or lies in {Path.cwd()}: run from the folder that holds it"
            ) from error
        raise SourceError(f"{spec}: {name} needs module {error.name!r}, which is not installed: install it") from error
    except Exception as error:
        raise SourceError(f"{spec}: importing {name} failed with {type(error).__name__}: {error}") from error


@contextmanager
def _current_directory_last() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
