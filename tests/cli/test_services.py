"""``services`` lists what runs and which profiles there are."""

from __future__ import annotations

from aiservices.cli import Exit
from tests.cli.conftest import Cli


def test_services_lists_the_profile_and_all_profiles(cli: Cli) -> None:
    code, out, _ = cli("services", "--profile", "all")
    lines = [line.split() for line in out.splitlines()]
    assert code == Exit.OK
    assert lines[0] == ["profile", "all"]
    assert ["upper", "tests.fakes:Upper", ".", "cpu", "4", "1.5"] in lines
    assert ["demo", "echo"] in lines
    assert ["*", "all", "echo,", "upper,", "unloadable,", "speech"] in lines
