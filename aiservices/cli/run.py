"""``run``: one job through the same registry that serves, in this process, without a port."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import attrs

from aiservices.cli import Exit, complain
from aiservices.cli.fields import read_fields
from aiservices.cli.printing import print_json, shortened
from aiservices.cli.settings import read_settings
from aiservices.errors import ServiceError, UnknownService
from aiservices.jobs import Job, JobOutput, JobRequest, JobStatus
from aiservices.logs import configure_logging
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config

LOOK_EVERY_S = 0.1
BAR_WIDTH = 30


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Run the job, show how far it is on a terminal, print its output."""
    config = read_settings(options, environ)
    configure_logging("info" if options.verbose else "error", config.server.log_format)
    job = asyncio.run(_run(_only(config, options.service), options, sys.stderr))
    if job.status is not JobStatus.COMPLETED:
        complain(f"{job.status}: {job.error or 'the job ended without a reason'}")
        return Exit.FAILED
    assert job.output is not None
    if options.output:
        shown = _write(job.output, options.output)
    else:
        shown = job.output.as_dict()
        shown = shortened(shown, "--output FILE writes them") if sys.stdout.isatty() else shown
    print_json(shown)
    return Exit.OK


def _only(config: Config, name: str) -> Config:
    """The same settings with one service, so that no other model is loaded."""
    if name not in config.services:
        raise UnknownService(name, list(config.services))
    return attrs.evolve(config, services={name: config.services[name]})


async def _run(config: Config, options: argparse.Namespace, terminal: TextIO) -> Job:
    registry = Registry(config)
    service = registry.get(options.service)
    payload = read_fields(service.handler.Input, options.fields)
    try:
        await registry.start()
        job = service.submit(JobRequest(input=payload))
        try:
            await _watch(service, job, terminal)
        finally:
            service.give_up(job)  # where Ctrl-C ended the wait
    finally:
        await registry.close()
    return job


async def _watch(service: Service, job: Job, terminal: TextIO) -> None:
    """Wait for the end; on a terminal, redraw one line meanwhile."""
    shown = terminal.isatty()
    while not job.ended:
        await job.wait_end(LOOK_EVERY_S if shown else 3600.0)
        if shown:
            terminal.write(f"\r\x1b[K{'' if job.ended else progress_line(service, job)}")
            terminal.flush()


def progress_line(service: Service, job: Job) -> str:
    """One line on how far the job is."""
    if job.status is JobStatus.IN_QUEUE:
        return service.reason or "waiting"
    if job.progress is None:
        return f"running for {job.execution_s:.0f} s"
    filled = round(job.progress * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {job.progress:4.0%}"


def _write(output: JobOutput, path: Path) -> dict[str, Any]:
    """Write the audio of an output, else the output itself; return what is left to show."""
    audio = output.file("audio")
    try:
        path.write_bytes(output.as_json() if audio is None else audio.data)
    except OSError as error:
        raise ServiceError(f"{path}: cannot be written: {error.strerror}") from None
    return {"written": str(path)} if audio is None else {**output.as_dict(), "audio": str(path)}
