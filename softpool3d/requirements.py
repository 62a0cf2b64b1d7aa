"""What softpool3d needs of other packages, by its own metadata: pip sees to it, unless it is told not to."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def required() -> list[Requirement]:
    """Returns the packages that softpool3d cannot do without here, with their versions; none if it is not installed."""
    from packaging.requirements import Requirement  # 8 ms that reading a video does not need

    try:
        lines = metadata.requires("softpool3d") or []
    except metadata.PackageNotFoundError:
        return []
    needed = map(Requirement, lines)
    return [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]


def version_of(package: str) -> str | None:
    """Returns the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def remedy(need: Requirement) -> str | None:
    """Returns what to do where a required package is missing or of another version, or None where it fits."""
    version = version_of(need.name)
    if version is not None and need.specifier.contains(version, prereleases=True):
        return None
    return f"pip install '{need.name}{need.specifier}'"


def wrong_version(package: str) -> str | None:
    """Returns a sentence if another version of a package is installed than softpool3d needs, or None."""
    todo = next((remedy(need) for need in required() if need.name == package), None)
    return f"{package} {version_of(package)} is installed, and softpool3d needs another: {todo}" if todo else None
