"""What a job costs beside its work, here and with what one would take instead: ``scripts/bench overhead --help``."""
