"""The RunPod transport: jobs that RunPod's worker loop took, on one registry. The package ``runpod`` is the CLI's."""

from aiservices.transports.runpod.adapter import RunPodAdapter, slots
from aiservices.transports.runpod.worker import Worker

__all__ = ["RunPodAdapter", "Worker", "slots"]
