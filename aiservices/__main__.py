"""``python -m aiservices``."""

from aiservices.cli import main
from aiservices.cli.leaving import leave_if_held

if __name__ == "__main__":
    raise SystemExit(leave_if_held(main()))
