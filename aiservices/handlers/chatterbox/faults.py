"""Whose fault an error is: that of one row, which fails its job alone, or the device's, which concerns all."""

from __future__ import annotations

_OF_THE_DEVICE = {"OutOfMemoryError", "MemoryError", "AcceleratorError"}
"""torch's and Python's; told by their names, so that torch need not be imported to ask."""


def is_of_device(error: BaseException) -> bool:
    """Tell whether an error says that the device is out of memory or broken.

    Such an error goes up to the driver, which knows what to do about every row; any other is the fault of the row that
    was worked on.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    said = str(error)
    return bool(names & _OF_THE_DEVICE) or "CUDA error" in said or "not enough memory" in said


def raise_if_of_device(error: BaseException) -> None:
    """Raise an error again unless it is the fault of one row; see :func:`is_of_device`."""
    if is_of_device(error):
        raise error
