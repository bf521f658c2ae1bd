"""``services`` lists what runs and which profiles there are."""

from __future__ import annotations

import json

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


def test_services_are_one_document_for_programs(cli: Cli) -> None:
    code, out, _ = cli("services", "--profile", "all", "--json")
    shown = json.loads(out)
    assert code == Exit.OK
    assert shown["services"][1] == {
        "name": "upper",
        "handler": "tests.fakes:Upper",
        "model": ".",
        "device": "cpu",
        "max_batch_size": 4,
        "memory_gib": 1.5,
    }
    assert (shown["profile"], shown["profiles"]["demo"]) == ("all", ["echo"])
