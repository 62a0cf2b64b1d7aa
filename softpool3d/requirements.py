"""What softpool3d needs of other packages, by its own metadata: pip sees to it, unless it is told not to."""

from importlib import metadata

from packaging.requirements import Requirement


def required() -> list[Requirement]:
    """Returns the packages that softpool3d cannot do without here, with their versions; none if it is not installed."""
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
    for need in required():
        if need.name == package and remedy(need):
            return f"{package} {version_of(package)} is installed, and softpool3d needs another: {remedy(need)}"
    return None
