"""The jobs of one service: accepted, remembered, ended and forgotten. The one place that knows where a job is.

=================  ==================================================================================================
``status``         the states that callers see, the stages behind them, and why jobs end
``request``        what a caller asked for
``stream``         chunks that nobody has read yet
``output``         what a job made
``job``            one job, and its one way to end
``queue``          the jobs that wait, in order; keys take turns
``admission``      who may join it
``table``          every remembered job, by id and idempotency key
``records``        between jobs and the journal
``announcer``      makes an end known
``tracing``        spans of a job, where OpenTelemetry is there
``limits``         when a job has waited or run too long
``retention``      how long ended jobs are remembered
``signal``         wakes whoever waits for a job
``listing``        jobs by id, by key and by age
``manager``        all jobs of a service
``restorer``       the jobs of an earlier process
=================  ==================================================================================================
"""

from aiservices.jobs.job import Job, Priority
from aiservices.jobs.listing import DEFAULT_LIMIT, MAX_LIMIT, Page, Wanted, read_statuses
from aiservices.jobs.manager import JobManager
from aiservices.jobs.output import JobOutput, OutputFile
from aiservices.jobs.records import JobRecords
from aiservices.jobs.request import Destination, JobRequest, fingerprint
from aiservices.jobs.restorer import Restorer
from aiservices.jobs.status import ENDED, RETRYABLE, EndReason, JobStatus, Stage

__all__ = [
    "DEFAULT_LIMIT",
    "ENDED",
    "MAX_LIMIT",
    "RETRYABLE",
    "Destination",
    "EndReason",
    "Job",
    "JobManager",
    "JobOutput",
    "JobRecords",
    "JobRequest",
    "JobStatus",
    "OutputFile",
    "Page",
    "Priority",
    "Restorer",
    "Stage",
    "Wanted",
    "fingerprint",
    "read_statuses",
]
