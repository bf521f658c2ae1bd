"""Serve AI models as jobs: run, poll, stream, cancel; batched, bounded and on your own machine."""

from aiservices.errors import InvalidInput, JobFailed, ServiceError
from aiservices.handler import BatchHandler, Context, StepHandler, Task
from aiservices.options import read_options

__version__ = "0.1.0"

__all__ = [
    "BatchHandler",
    "Context",
    "InvalidInput",
    "JobFailed",
    "ServiceError",
    "StepHandler",
    "Task",
    "__version__",
    "read_options",
]
