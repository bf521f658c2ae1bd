"""What survives the process: every accepted job, in one SQLite file that one thread writes."""

from aiservices.journal.events import Accepted, Delivered, Ended, Event, Forgotten, Requeued, Started, StoredOutput
from aiservices.journal.journal import Journal
from aiservices.journal.records import QUEUED, RUNNING, JobRecord
from aiservices.journal.store import read_offline
from aiservices.journal.writer import RETRY_S

__all__ = [
    "QUEUED",
    "RETRY_S",
    "RUNNING",
    "Accepted",
    "Delivered",
    "Ended",
    "Event",
    "Forgotten",
    "JobRecord",
    "Journal",
    "Requeued",
    "Started",
    "StoredOutput",
    "read_offline",
]
