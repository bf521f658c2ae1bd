"""One model of one service: its thread, its device, and where it is between COLD and STOPPED."""

from aiservices.model.lifecycle import LoadFailed, Model, ServiceState, option_folders
from aiservices.model.thread import ModelThread

__all__ = ["LoadFailed", "Model", "ModelThread", "ServiceState", "option_folders"]
