"""Which packages a handler needs, by the extra with its module's name, and which of them are installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import attrs

import aiservices

_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*(?P<versions>[^;]*)")
_EXTRA = re.compile(r"""extra\s*==\s*["'](?P<extra>[^"']+)["']""")


@attrs.frozen
class Package:
    """One package that is needed.

    Attributes:
        versions: which are accepted, as ``>=2,<3``.
        found: the installed version, None if there is none.
    """

    name: str
    versions: str
    found: str | None

    @property
    def fits(self) -> bool:
        """Whether it is installed in an accepted version."""
        return self.found is not None and _fits(self.found, self.versions)

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} (not installed)"
        return f"{self.name} {self.found}" + ("" if self.fits else f" (needs {self.versions})")


def extra_of(handler: str) -> str:
    """Return the extra that would hold what ``package.module:Class`` needs."""
    return handler.partition(":")[0].rpartition(".")[2]


def packages_are_known() -> bool:
    """Whether this is an installation, which lists what it needs, and not a mere copy of the source."""
    return _version("aiservices") is not None


def packages_of(extra: str) -> list[Package]:
    """Return what an extra lists; nothing if there is no such extra."""
    return [Package(name, versions, _version(name)) for name, versions in _requirements(extra)]


def _requirements(extra: str) -> Iterator[tuple[str, str]]:
    try:
        lines = metadata.requires("aiservices") or []
    except metadata.PackageNotFoundError:  # run from a copy of the source
        lines = []
    wanted = [line for line in lines if (found := _EXTRA.search(line)) and found["extra"] == extra]
    # What scripts/install adds in its second step stands beside the source, where there is one.
    second_step = Path(aiservices.__file__).parent.parent / "requirements" / f"{extra}.no-deps.txt"
    if second_step.is_file():
        wanted += second_step.read_text(encoding="utf-8").splitlines()
    for line in wanted:
        if match := _REQUIREMENT.match(line):
            yield match["name"], match["versions"].strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, versions: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # every extra with fragile versions installs it
    return SpecifierSet(versions).contains(version, prereleases=True)
