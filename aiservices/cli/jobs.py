"""``jobs``: list, show, cancel and retry the jobs of a running server; list and show those of a journal."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from aiservices.cli import Exit, complain
from aiservices.cli.offline import JournalFile
from aiservices.cli.printing import columns, print_json, printable, shortened
from aiservices.cli.server import Server, connect
from aiservices.cli.settings import read_settings, server_url
from aiservices.environment import KEY_VARIABLE
from aiservices.errors import ConfigError
from aiservices.jobs import JobStatus, Wanted, read_statuses

NOTE_CHARACTERS = 80
"""Of an error in the table; ``show`` has all of it."""

HEADING = ("ID", "SERVICE", "STATUS", "CREATED", "WAITED", "RAN", "OWNER", "NOTE")

Json = dict[str, Any]


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Do what is asked and print what came of it."""
    if options.action != "list" and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", options.id):
        raise ConfigError(f"jobs {options.action}: {options.id!r} is no id of a job; 'aiservices jobs list' shows them")
    if options.journal is not None:
        return _look(options)
    return asyncio.run(_ask(options, *_where(options, environ)))


def _look(options: argparse.Namespace) -> Exit:
    """Read a file."""
    if options.action in ("cancel", "retry"):
        raise ConfigError(
            f"jobs {options.action}: a server has to do that; start one on this journal, and leave it out"
        )
    file = JournalFile(options.journal, options.service)
    if options.action == "list":
        return _print_list(*file.jobs(_wanted(options)), options)
    return _print_job(file.job(options.id), options)


async def _ask(options: argparse.Namespace, url: str, key: str) -> Exit:
    """Ask a server."""
    async with connect(url, key) as server:
        services = await server.services(options.service)
        if options.action == "list":
            return _print_list(*await server.jobs(services, _wanted(options)), options)
        if options.action == "show":
            return _print_job(await server.call("GET", "status", services, options.id), options)
        return await _act(server, services, options)


async def _act(server: Server, services: Sequence[str], options: argparse.Namespace) -> Exit:
    job = await server.call("POST", options.action, services, options.id)
    if options.json:
        print_json(job)
    else:
        print(f"{job['id']}: {job['status']}")
    if options.action == "cancel" and job["status"] != JobStatus.CANCELLED:
        complain("it had ended before")
        return Exit.FAILED
    return Exit.OK


def _where(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, str]:
    """The server's address and the key for it; one of the settings' own keys goes to the settings' own address only."""
    key = environ.get(KEY_VARIABLE, "")
    if options.url is not None:
        return options.url, key
    server = read_settings(options, environ).server
    if server.port == 0:
        raise ConfigError("the settings let the server choose its port: name it with --url, as 'serve' prints it")
    return server_url(server.host, server.port), key or next(iter(server.api_keys), "")


def _wanted(options: argparse.Namespace) -> Wanted:
    statuses = frozenset[JobStatus]() if options.status is None else read_statuses(options.status)
    return Wanted(limit=options.limit, statuses=statuses)


def _print_list(jobs: Sequence[Json], more: bool, options: argparse.Namespace) -> Exit:
    if options.json:
        print_json({"jobs": jobs, "more": more})
        return Exit.OK
    if not jobs:
        print("no jobs")
        return Exit.OK
    table = [HEADING, *map(_row, jobs)]
    has_owners = any("key" in job for job in jobs)
    owner = HEADING.index("OWNER")
    for line in columns(table if has_owners else [(*row[:owner], *row[owner + 1 :]) for row in table]):
        print(line)
    if more:
        print(f"{len(jobs)} shown; there may be older ones (--limit)")
    return Exit.OK


def _row(job: Json) -> tuple[str, ...]:
    created = datetime.fromisoformat(job["createdAt"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    owner = f"{job.get('tenant', '')}/{job['key']}" if "key" in job else "-"
    times = _seconds(job.get("delayTime")), _seconds(job.get("executionTime"))
    return job["id"], job["service"], job["status"], created, *times, printable(owner), printable(_note(job))


def _seconds(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:.1f} s"


def _note(job: Json) -> str:
    if "error" in job:
        error = str(job["error"])
        return error if len(error) <= NOTE_CHARACTERS else f"{error[:NOTE_CHARACTERS]}…"
    if "progress" in job:
        return f"{job['progress']:.0%}"
    place = f"place {job['queuePosition']}" if "queuePosition" in job else ""
    return ": ".join(filter(None, (place, job.get("reason", ""))))


def _print_job(job: Json, options: argparse.Namespace) -> Exit:
    if options.json:
        print_json(job)
        return Exit.OK
    for line in columns([(key, printable(str(value))) for key, value in job.items() if key != "output"]):
        print(line)
    if "output" in job:
        print("output")
        print_json(shortened(job["output"], "--json prints them") if sys.stdout.isatty() else job["output"])
    return Exit.OK
