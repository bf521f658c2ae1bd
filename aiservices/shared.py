"""What the services of one process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import attrs

from aiservices.fetch import Fetcher
from aiservices.journal import Journal
from aiservices.metrics import Metrics
from aiservices.model import MemoryBudget
from aiservices.outputs import OutputStore
from aiservices.quotas import Quotas
from aiservices.sandbox import Children
from aiservices.storage import ModelStore
from aiservices.webhooks import WebhookSender


@attrs.frozen(kw_only=True)
class Shared:
    """What the services of one process share.

    Attributes:
        pool: threads for preprocessing and postprocessing.
        children: processes for what may crash or hang.
        load_slot: held while a model loads.
        budget: of each device's memory.
        worker_id: names this process in status objects.
        on_broken: told when a service's model is beyond repair.
        quotas: of callers' keys.
        journal: keeps accepted jobs beyond the process; None: memory alone does.
    """

    fetcher: Fetcher
    webhooks: WebhookSender
    outputs: OutputStore
    metrics: Metrics
    store: ModelStore
    pool: Executor
    children: Children
    load_slot: asyncio.Lock
    budget: MemoryBudget
    worker_id: str
    on_broken: Callable[[], None]
    quotas: Quotas
    journal: Journal | None = None
