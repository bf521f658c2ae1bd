"""``check``: everything that can be known about a profile without loading a model."""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import attrs

from aiservices.cli import Exit
from aiservices.cli.memory import ServiceNeed, device_sums, free_on, reserved_shares, service_needs, table
from aiservices.cli.packages import extra_of, packages_are_known, packages_of
from aiservices.cli.printing import print_json
from aiservices.cli.settings import read_settings, who_may_call
from aiservices.errors import ServiceError
from aiservices.keys import KeyRing
from aiservices.model import check_budget, check_memory, full_name, option_folders, resolve_device
from aiservices.registry import load_handler
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.storage import ModelStore

SOME_GIB = 0.001
"""Asked for where no ``memory_gib`` is set, to see that the device is there at all."""

Verdict = Literal["ok", "note", "WRONG"]


@attrs.frozen
class Finding:
    """One line of the report."""

    verdict: Verdict
    topic: str
    text: str


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Print the report; whether anything is wrong is the exit code."""
    config = read_settings(options, environ)
    if options.json:
        return _print_json(config)
    print(f"profile {config.profile}: {', '.join(config.services)}")
    wrong = 0
    needs = list(service_needs(config, ModelStore(config)))
    for heading, findings in _sections(config, needs):
        print(heading)
        for finding in findings:
            print(f"  {finding.verdict:<6}{finding.topic:<9} {finding.text}", flush=True)
            wrong += finding.verdict == "WRONG"
    if needs:
        print("memory in GiB, estimated for prompts of ordinary length", *table(needs), sep="\n")
    print(f"{wrong} thing{'s' * (wrong != 1)} wrong" if wrong else "all is well")
    return Exit.FAILED if wrong else Exit.OK


def _print_json(config: Config) -> Exit:
    needs = list(service_needs(config, ModelStore(config)))
    findings = [
        {"about": heading, **attrs.asdict(finding)} for heading, found in _sections(config, needs) for finding in found
    ]
    wrong = sum(finding["verdict"] == "WRONG" for finding in findings)
    memory = [attrs.asdict(need) for need in needs]
    print_json({"profile": config.profile, "findings": findings, "memory": memory, "wrong": wrong})
    return Exit.FAILED if wrong else Exit.OK


def _sections(config: Config, needs: Sequence[ServiceNeed]) -> Iterator[tuple[str, Iterator[Finding]]]:
    store = ModelStore(config)
    for service in config.services.values():
        yield service.name, _service(service, store)
    yield "process", _process(config, needs)


def _service(service: ServiceConfig, store: ModelStore) -> Iterator[Finding]:
    try:
        folders = option_folders(service, load_handler(service))
    except ServiceError as error:
        folders = {}
        yield Finding("WRONG", "handler", str(error))
    else:
        yield Finding("ok", "handler", service.handler)
    yield from _packages(service, [service.model, *folders.values()])
    yield _folder("model", service.model, store) if service.model else Finding("ok", "model", "none needed")
    for option, uri in folders.items():
        yield _folder("options", uri, store, option)


def _process(config: Config, needs: Sequence[ServiceNeed]) -> Iterator[Finding]:
    yield from _memory(config)
    yield from _estimates(needs)
    yield _access(config.server)


def _packages(service: ServiceConfig, uris: Sequence[str]) -> Iterator[Finding]:
    extras = [extra_of(service.handler), *(["s3"] if any(uri.startswith("s3://") for uri in uris) else [])]
    if not packages_are_known():
        yield Finding("note", "packages", "not known: aiservices itself is not installed here (scripts/install)")
    for extra in extras:
        packages = packages_of(extra)
        unfit = [str(package) for package in packages if not package.fits]
        if unfit:
            yield Finding("WRONG", "packages", f"{', '.join(unfit)}; scripts/install installs them")
        elif packages:
            yield Finding("ok", "packages", ", ".join(map(str, packages)))


def _folder(topic: str, uri: str, store: ModelStore, option: str = "") -> Finding:
    try:
        found = asyncio.run(store.describe(uri, option=option))
    except ServiceError as error:
        return Finding("WRONG", topic, str(error))
    return Finding("ok", topic, f"{option}{': ' * bool(option)}{uri} {found}")


def _memory(config: Config) -> Iterator[Finding]:
    """Sum what the services ask for up by device, and compare it with what is free there now."""
    sums: dict[str, float] = defaultdict(float)
    for service in config.services.values():
        sums[resolve_device(service.device)] += service.memory_gib
    try:
        check_budget(config)
    except ServiceError as error:
        yield Finding("WRONG", "memory", str(error))
    bounds = {full_name(device): bound for device, bound in config.server.device_memory_gib.items() if bound}
    sums = {device: min(gib, bounds.get(full_name(device), gib)) for device, gib in sums.items()}
    for device, gib in sums.items():
        try:
            check_memory(gib or SOME_GIB, device)
        except ServiceError as error:
            yield Finding("WRONG", "memory", f"all services together: {error}")
        except Exception as error:  # whatever torch says where there is no such device
            yield Finding("WRONG", "device", f"{device} cannot be used here: {error}")
        else:
            asked = f"the {gib:g} GiB that all services together ask for are free" if gib else "no memory_gib is set"
            yield Finding("ok", "memory", f"{device}: {asked}")


def _estimates(needs: Sequence[ServiceNeed]) -> Iterator[Finding]:
    """Compare what the models take by estimate with what their settings and their devices say."""
    for each in needs:
        if each.need is not None and 0 < each.memory_gib < each.need.total_gib:
            text = f"{each.service} takes about {each.need.total_gib:.1f} GiB; its memory_gib says {each.memory_gib:g}"
            yield Finding("note", "memory", text)
    for device, share in reserved_shares(needs).items():
        if share > 1:
            text = f"{device}: vLLM is to take {share:.0%} of it, for all services together (options.memory_share)"
            yield Finding("WRONG", "memory", text)
    for device, gib in device_sums(needs).items():
        free = free_on(device)
        if free is None:  # told above
            continue
        text = f"{device}: the models take about {gib:.1f} GiB together, {free:.1f} GiB are free"
        yield Finding("ok" if gib <= free else "note", "memory", text)


def _access(server: ServerConfig) -> Finding:
    if server.keys_file:
        return _keys_file(server)
    if server.api_keys:
        return Finding("ok", "access", f"{len(server.api_keys)} API keys")
    if warning := who_may_call(server):
        return Finding("note", "access", warning)
    return Finding("ok", "access", f"only from this machine ({server.host})")


def _keys_file(server: ServerConfig) -> Finding:
    keys = KeyRing(server)
    try:
        keys.read()
        return Finding("ok", "access", f"{keys.count} keys, from {server.keys_file} too")
    except ServiceError as error:
        return Finding("WRONG", "access", str(error))
