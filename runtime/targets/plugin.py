"""Providers that are libraries of their own, in packages beside onnxruntime: what is installed of them."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from monograph.runtime.targets.target import Availability


def missing_package(module: str, oldest_onnxruntime: tuple[int, int]) -> Availability | None:
    """Return why the package of a plugin provider cannot be used here, or None where it can.

    Args:
        module: the package's import name; in its distribution's name stand hyphens for the underscores.
        oldest_onnxruntime: major and minor version that it needs.
    """
    name = module.replace("_", "-")
    if importlib.util.find_spec(module) is None:
        return Availability(False, f"the package {name} is not installed", f"pip install {name}")
    found = version_of("onnxruntime")
    if found is not None and tuple(int(part) for part in found.split(".")[:2]) < oldest_onnxruntime:
        needed = ".".join(map(str, oldest_onnxruntime))
        return Availability(False, f"{name} needs onnxruntime {needed}, here is {found}", f"pip install 'onnxruntime>={needed}'")
    return None


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
