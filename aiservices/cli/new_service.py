"""``new-service``: the class, the table and the test of a service of one's own, to begin with."""

from __future__ import annotations

import argparse
import keyword
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import attrs

from aiservices.cli import Exit
from aiservices.config import check_service_name, load_config, settings_path
from aiservices.errors import ConfigError, ServiceError

_HANDLERS, _TESTS = Path("aiservices", "handlers"), Path("tests", "handlers")
"""Where they go in a copy of the project's source; elsewhere beside the settings file."""


@attrs.frozen
class _Place:
    """A new service's names and files."""

    name: str
    settings: Path

    @property
    def word(self) -> str:
        return self.name.replace("-", "_")

    @property
    def cls(self) -> str:
        return "".join(part.capitalize() for part in self.name.split("-"))

    @property
    def in_source(self) -> bool:
        return (self.settings.parent / _HANDLERS).is_dir()

    @property
    def module(self) -> str:
        return ".".join([*_HANDLERS.parts, self.word]) if self.in_source else self.word

    @property
    def handler(self) -> Path:
        return self.settings.parent / (_HANDLERS if self.in_source else "") / f"{self.word}.py"

    @property
    def test(self) -> Path:
        return self.settings.parent / (_TESTS if self.in_source else "") / f"test_{self.word}.py"

    def render(self, template: str) -> str:
        text = resources.files("aiservices.cli").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
        return text.format(name=self.name, cls=self.cls, module=self.module, imports=self._imports())

    def _imports(self) -> str:
        """The test's imports, in the order of linters: in the source the handler's module is one of the package."""
        lines = ["from aiservices.errors import InvalidInput", "from aiservices.testing import serving"]
        own = f"from {self.module} import {self.cls}"
        return "\n".join(sorted([*lines, own])) if self.in_source else "\n".join([*lines, "", own])


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Write what is not there yet, and say how to go on."""
    place = _Place(options.name, settings_path(options.config, environ))
    _check(place)
    try:
        for path, template in ((place.handler, "handler"), (place.test, "test")):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(place.render(template))
        with place.settings.open("a", encoding="utf-8") as file:
            file.write(place.render("table"))
    except OSError as error:
        raise ServiceError(f"{error.filename}: cannot be written: {error.strerror}") from None
    print(f"written: {place.handler}, {place.test}, and its tables in {place.settings}")
    which = f"--config {place.settings} --profile {place.name}"
    print(f"  python -m aiservices run {which} {place.name} text=hello")
    print(f"  python -m aiservices serve {which}")
    print(f"  python -m pytest {place.test}")
    return Exit.OK


def _check(place: _Place) -> None:
    """Refuse to write over what is there.

    Raises:
        ConfigError: the name cannot be one, or is taken.
    """
    check_service_name(place.name, "new-service")
    if not place.word.isidentifier() or keyword.iskeyword(place.word):
        raise ConfigError(f"new-service: {place.word!r} cannot name a Python module")
    for path in (place.handler, place.test):
        if path.exists():
            raise ConfigError(f"{path} is there already")
    if not place.settings.exists():
        return
    config = load_config(place.settings, {})
    profiles = [load_config(place.settings, {}, name) for name in config.profiles]
    taken = place.name in config.profiles or any(place.name in profile.services for profile in profiles)
    if taken or f"[services.{place.name}]" in place.settings.read_text(encoding="utf-8"):
        raise ConfigError(f"{place.settings} has a service or a profile {place.name!r} already")
