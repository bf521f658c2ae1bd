"""One model of one service: its thread, its device, and where it is between COLD and STOPPED."""

from aiservices.model.budget import MemoryBudget, check_budget, full_name
from aiservices.model.device import check_memory, free_gib, gpu_memory, resolve_device
from aiservices.model.lifecycle import LoadFailed, Model, ServiceState, option_folders
from aiservices.model.thread import ModelThread

__all__ = [
    "LoadFailed",
    "MemoryBudget",
    "Model",
    "ModelThread",
    "ServiceState",
    "check_budget",
    "check_memory",
    "free_gib",
    "full_name",
    "gpu_memory",
    "option_folders",
    "resolve_device",
]
