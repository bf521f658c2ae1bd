"""Work on what callers send in processes that may crash, hang or fill their memory without harm to this one."""

from aiservices.sandbox.children import ChildFunction, Children, Limits

__all__ = ["ChildFunction", "Children", "Limits"]
