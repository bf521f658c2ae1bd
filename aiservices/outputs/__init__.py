"""What leaves: a job's output, and the bucket that its large files go to."""

from aiservices.outputs.encoding import file_fields
from aiservices.outputs.store import OutputStore, Packed

__all__ = ["OutputStore", "Packed", "file_fields"]
