"""Write the README's tables of settings; the work behind ``scripts/settings-table``.

Names, defaults and meanings are those of ``aiservices.settings``; the variables are those of
``aiservices.environment``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from aiservices.environment import ENVIRONMENT
from aiservices.settings import MEANING, Config, ServiceConfig

README = Path(__file__).resolve().parent.parent / "README.md"
START = "<!-- settings: written by scripts/settings-table -->\n"
END = "<!-- settings: end -->\n"
HEADING = ["setting", "default", "meaning", "environment"]
BINARY_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
TIME_UNITS = (("h", 3600), ("min", 60))


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or with ``--check`` see whether they are up to date."""
    readme = README.read_text(encoding="utf-8")
    updated = update(readme)
    if arguments != ["--check"]:
        README.write_text(updated, encoding="utf-8")
    elif updated != readme:
        print("README.md: the tables of settings are out of date; run scripts/settings-table", file=sys.stderr)
        return 1
    return 0


def update(readme: str) -> str:
    """Replace what stands between the two marks."""
    before, _, rest = readme.partition(START)
    _, mark, after = rest.partition(END)
    assert mark, f"README.md has to hold {START.strip()} and {END.strip()}"
    tables = {name: type(part) for name, part in attrs.asdict(Config(), recurse=False).items() if attrs.has(type(part))}
    tables["services.NAME"] = ServiceConfig
    return before + START + "".join(section(name, cls) for name, cls in tables.items()) + "\n" + END + after


def section(table: str, cls: type[Any]) -> str:
    """One table of the file: a heading, what it is about, and a row for each setting."""
    about = (cls.__doc__ or "").partition("\n\n")[0].partition(": ")[2].replace("``", "`")
    variables = {key: f"`{variable}`" for variable, (owner, key) in ENVIRONMENT.items() if owner == table}
    rows = [
        [f"`{field.name}`", default(field), field.metadata[MEANING], variables.get(field.name, "")]
        for field in attrs.fields(cls)
        if MEANING in field.metadata
    ]
    columns = 4 if variables else 3
    lines = [f"| {' | '.join(row[:columns])} |" for row in [HEADING, *rows]]
    lines.insert(1, "|" + "---|" * columns)
    return "\n".join(["", f"### `[{table}]`", "", about[:1].upper() + about[1:], "", *lines, ""])


def default(field: attrs.Attribute[Any]) -> str:
    """The default as one would write it in the file, and in larger units where that reads better."""
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]  # a class, which its stubs call a function
        return "`{}`"
    value = f"{field.default:.15g}" if isinstance(field.default, float) else json.dumps(field.default, default=str)
    return f"`{value}`{larger_unit(field.name, field.default)}"


def larger_unit(name: str, value: Any) -> str:
    """`` (256 MiB)`` for 268435456 bytes; nothing for a number that reads well as it is."""
    units = BINARY_UNITS if name.endswith("_bytes") else TIME_UNITS if name.endswith("_s") else ()
    return next((f" ({value / size:g} {unit})" for unit, size in units if value >= size and value % size == 0), "")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
