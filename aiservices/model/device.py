"""The device that a model is loaded on, and whether it has room."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from aiservices.errors import ServiceError
from aiservices.metrics import DeviceMemory


def resolve_device(device: str) -> str:
    """Turn ``auto`` into ``cuda`` or ``cpu``. Imports torch only where there may be a GPU. On the model's thread."""
    if device != "auto":
        return device
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")):
        return "cpu"
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_memory(memory_gib: float, device: str) -> None:
    """Make sure that the device has ``memory_gib`` free before weights go there. On the model's thread.

    Raises:
        ServiceError: it has less; says how much.
    """
    if memory_gib <= 0:
        return
    free = free_gib(device)
    if free < memory_gib:
        raise ServiceError(f"it needs {memory_gib:g} GiB on {device}, where {free:.1f} GiB are free (memory_gib)")


def free_gib(device: str) -> float:
    """What is free on a device now; infinite where the machine does not say. Imports torch for a GPU."""
    return _free_bytes(device) / 2**30


def allocated_gib(device: str) -> float:
    """What this process's tensors hold of a GPU; 0 on a CPU, whose memory no model gives back by itself alone."""
    if not device.startswith("cuda"):
        return 0.0
    return float(importlib.import_module("torch").cuda.memory_allocated(device)) / 2**30


def gpu_memory() -> list[DeviceMemory]:
    """Return what this process holds of each GPU that a model was loaded on; nothing where none uses one.

    Asks torch's own allocator, never the driver, so it neither waits for the device nor begins to use one.
    """
    torch = sys.modules.get("torch")  # what nobody imported holds nothing
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [
        DeviceMemory(
            device=f"cuda:{index}",
            allocated=torch.cuda.memory_allocated(index),
            reserved=reserved,
            total=torch.cuda.get_device_properties(index).total_memory,
        )
        for index in range(torch.cuda.device_count())
        if (reserved := torch.cuda.memory_reserved(index))
    ]


def _free_bytes(device: str) -> float:
    if device.startswith("cuda"):
        free, _ = importlib.import_module("torch").cuda.mem_get_info(device)
        return float(free)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if kib is None else float(kib) * 1024
