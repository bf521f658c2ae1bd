"""``check`` says what the models take of their devices, and the shipped profiles ask for as much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiservices.cli import Exit, memory
from aiservices.cli.memory import ServiceNeed, device_sums, reserved_shares, service_needs, table
from aiservices.config import load_config
from aiservices.estimates import MemoryNeed
from aiservices.handlers.text import loading
from aiservices.storage import ModelStore
from tests.cli.conftest import ROOT, SETTINGS, Cli

SIZE_OF_48_GIB = 44.98
"""What an L40S or A40 has in all: 46 068 MiB."""
FREE_OF_48_GIB = 44.5
"""The same without a context of half a GiB."""
FREE_OF_24_GIB = 22.0
"""What an A10 or L4 has left: 22.5 GiB, and a context of half a GiB."""
NEEDED = MemoryNeed(weights_gib=10.0, cache_gib=2.0, activations_gib=0.5)


def shipped(profile: str, tmp_path: Path) -> list[ServiceNeed]:
    environ = {"AISERVICES_PROFILE": profile, "AISERVICES_MODEL_DIR": str(tmp_path)}
    config = load_config(ROOT / "services.toml", environ)
    return list(service_needs(config, ModelStore(config)))


@pytest.mark.parametrize(
    ("profile", "services", "free_gib"),
    [
        ("full", 3, FREE_OF_48_GIB),
        ("qwen-describe-image", 1, FREE_OF_24_GIB),
        ("mistral-generate-description", 1, FREE_OF_24_GIB),
        ("chatterbox-text-to-speech", 1, FREE_OF_24_GIB),
    ],
)
def test_the_budgets_of_the_shipped_profiles_hold(profile: str, services: int, free_gib: float, tmp_path: Path) -> None:
    needs = shipped(profile, tmp_path)
    assert len(needs) == services
    for each in needs:
        assert each.need is not None
        assert each.need.total_gib <= each.memory_gib < each.need.total_gib + 1.5
    assert sum(each.memory_gib for each in needs) <= free_gib
    assert device_sums(needs)["cuda:0"] <= free_gib


def test_under_vllm_the_services_of_one_gpu_reserve_no_more_than_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    needs = shipped("full", tmp_path)
    (share,) = reserved_shares(needs).values()
    speech = next(each.memory_gib for each in needs if each.service == "chatterbox-text-to-speech")
    assert share * SIZE_OF_48_GIB + speech <= FREE_OF_48_GIB
    for each in needs:
        if each.need is not None and each.need.reserved_share:
            assert each.need.reserved_share * SIZE_OF_48_GIB >= each.need.total_gib


def test_the_table_adds_a_devices_services_up_and_names_what_is_unknown() -> None:
    needs = [
        ServiceNeed("a", "cuda:0", 12, NEEDED),
        ServiceNeed("b", "cuda:0", 0, NEEDED),
        ServiceNeed("c", "cpu", 0, NEEDED),
        ServiceNeed("d", "cuda:0", 0, None),
    ]
    lines = [line.split() for line in table(needs)]
    assert lines[0] == ["service", "device", "weights", "cache", "activations", "sum", "memory_gib"]
    assert lines[1] == ["a", "cuda:0", "10.0", "2.0", "0.5", "12.5", "12"]
    assert lines[3] == ["c", "cpu", "10.0", "2.0", "0.5", "12.5", "not", "set"]
    assert lines[4] == ["all", "of", "them", "cuda:0", "20.0", "4.0", "1.0", "25.0", "12"]
    assert " ".join(lines[5]) == "d: unknown until the model is downloaded"
    assert len(lines) == 6


def test_check_prints_the_table_and_compares_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [ServiceNeed("a", "cpu", 12, NEEDED), ServiceNeed("b", "cpu", 13, NEEDED)]
    monkeypatch.setattr("aiservices.cli.check.service_needs", lambda config, store: iter(needs))
    monkeypatch.setattr(memory, "free_gib", lambda device: 30.0)
    code, out, _ = cli("check")
    assert "  note  memory    a takes about 12.5 GiB; its memory_gib says 12" in out.splitlines()
    assert "  ok    memory    cpu: the models take about 25.0 GiB together, 30.0 GiB are free" in out.splitlines()
    assert "b takes" not in out
    assert out.index("memory in GiB, estimated") < out.index("  all of them  cpu") < out.index("all is well")
    assert code == Exit.OK
    monkeypatch.setattr(memory, "free_gib", lambda device: 20.0)
    assert "  note  memory    cpu: the models take about 25.0 GiB together, 20.0" in cli("check")[1]


def test_reserving_more_than_all_of_a_device_is_wrong(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    need = MemoryNeed(10.0, reserved_share=0.9)
    needs = [ServiceNeed(name, "cuda:0", 0, need) for name in ("a", "b")]
    monkeypatch.setattr("aiservices.cli.check.service_needs", lambda config, store: iter(needs))
    code, out, _ = cli("check")
    assert "  WRONG memory    cuda:0: vLLM is to take 180% of it, for all services together" in out
    assert code == Exit.FAILED


def test_programs_get_the_estimates_too(cli: Cli) -> None:
    text = SETTINGS + '\n[services.listing]\nhandler = "aiservices.handlers.mistral:GenerateDescription"\n'
    text += 'model = "hf://mistralai/Mistral-7B-Instruct-v0.3"\ndevice = "cpu"\n[profiles.listing.services.listing]\n'
    Path("services.toml").write_text(text, encoding="utf-8")
    shown = json.loads(cli("check", "--profile", "listing", "--json")[1])
    (entry,) = shown["memory"]
    assert (entry["service"], entry["device"]) == ("listing", "cpu")
    assert entry["need"]["weights_gib"] == pytest.approx(27.0, abs=0.1)


def test_a_model_that_no_table_has_is_unknown_until_it_is_here(cli: Cli) -> None:
    text = SETTINGS + '\n[services.listing]\nhandler = "aiservices.handlers.mistral:GenerateDescription"\n'
    text += 'model = "hf://somebody/else"\n[profiles.listing.services.listing]\n'
    Path("services.toml").write_text(text, encoding="utf-8")
    out = cli("check", "--profile", "listing")[1]
    assert "  listing: unknown until the model is downloaded" in out.splitlines()
