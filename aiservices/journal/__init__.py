"""What survives the process: every accepted job, in one SQLite file that one thread writes."""

from aiservices.journal.events import Accepted, Delivered, Ended, Event, Forgotten, Requeued, Started, StoredOutput

__all__ = ["Accepted", "Delivered", "Ended", "Event", "Forgotten", "Requeued", "Started", "StoredOutput"]
