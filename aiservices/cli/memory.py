"""What ``check`` says of the memory that a profile's models take: a table, and whether each device has so much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import attrs

from aiservices.cli.printing import columns
from aiservices.errors import ServiceError
from aiservices.estimates import EstimatesMemory, MemoryNeed
from aiservices.model import free_gib, full_name, resolve_device
from aiservices.registry import load_handler
from aiservices.settings import Config, ServiceConfig
from aiservices.storage import ModelStore

_UNKNOWN = "unknown until the model is downloaded"
_HEADINGS = ("service", "device", "weights", "cache", "activations", "sum", "memory_gib")


@attrs.frozen
class ServiceNeed:
    """What a service takes of its device.

    Attributes:
        memory_gib: the setting; 0 if there is none.
        need: the estimate; None for a model that is neither here nor known by its name.
    """

    service: str
    device: str
    memory_gib: float
    need: MemoryNeed | None


def service_needs(config: Config, store: ModelStore) -> Iterator[ServiceNeed]:
    """Estimate what each service takes whose handler can tell; what is wrong with a service is told elsewhere."""
    for service in config.services.values():
        try:
            found = _need(service, store)
        except (ServiceError, ImportError):
            continue
        if found is not None:
            yield found


def _need(service: ServiceConfig, store: ModelStore) -> ServiceNeed | None:
    handler = load_handler(service)
    if not service.model or not isinstance(handler, EstimatesMemory):
        return None
    device = resolve_device(service.device)
    folder = asyncio.run(store.find(service.model))
    need = handler.estimate_memory(folder, service.model, device, service.options, service.max_batch_size)
    return ServiceNeed(service.name, full_name(device), service.memory_gib, need)


def device_sums(needs: Sequence[ServiceNeed]) -> Mapping[str, float]:
    """Add what is known of the services up by device, in GiB."""
    sums = dict.fromkeys((each.device for each in needs if each.need is not None), 0.0)
    for each in needs:
        if each.need is not None:
            sums[each.device] += each.need.total_gib
    return sums


def reserved_shares(needs: Sequence[ServiceNeed]) -> Mapping[str, float]:
    """Add what is reserved of each device up, 1 being all of it."""
    shares: dict[str, float] = {}
    for each in needs:
        if each.need is not None and each.need.reserved_share:
            shares[each.device] = shares.get(each.device, 0.0) + each.need.reserved_share
    return shares


def table(needs: Sequence[ServiceNeed]) -> Iterator[str]:
    """Lay the estimates out, a line a service, and one for each device that several share."""
    known = [(each, each.need) for each in needs if each.need is not None]
    rows: list[Sequence[str]] = [_HEADINGS]
    rows += [(each.service, each.device, *_parts(need), _asked(each.memory_gib)) for each, need in known]
    for device in device_sums(needs):
        there = [(each, need) for each, need in known if each.device == device]
        if len(there) > 1:
            together = MemoryNeed(
                sum(need.weights_gib for _, need in there),
                sum(need.cache_gib for _, need in there),
                sum(need.activations_gib for _, need in there),
            )
            rows.append(("all of them", device, *_parts(together), _asked(sum(each.memory_gib for each, _ in there))))
    if known:
        yield from columns(rows, indent="  ")
    yield from (f"  {each.service}: {_UNKNOWN}" for each in needs if each.need is None)


def _parts(need: MemoryNeed) -> Iterator[str]:
    for gib in (need.weights_gib, need.cache_gib, need.activations_gib, need.total_gib):
        yield f"{gib:.1f}"


def _asked(memory_gib: float) -> str:
    return f"{memory_gib:g}" if memory_gib else "not set"


def free_on(device: str) -> float | None:
    """Tell how many GiB are free on a device; None where there is no such device."""
    try:
        return free_gib(device)
    except Exception:  # whatever torch, or its absence, says
        return None
