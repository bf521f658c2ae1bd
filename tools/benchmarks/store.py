"""Measure the model store against the usual tools: ``scripts/bench store [--rounds 3] [--folder FOLDER]``.

Starts an S3 server of its own (``scripts/s3-server``), puts one file of 1 GB and 2000 files of 256 KB there and brings
each here with ``aws s3 sync``, with boto3's transfer manager and with this project's store: every time in a process of
its own and into an empty folder, the tools in turn. Prints the median seconds until the folder is complete, the peak
memory and how the store compares with the better of the others. The seconds of the two libraries are from the call on,
client and listing included, for a service has imported them long before; those of the command are its whole run. The
store verifies every byte, which the others do not; that it also has the disk take them, after the folder is complete,
is not in its seconds.

Numbers are for a quiet machine; nothing fails because of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from aiservices.settings import Config, S3Config, ServerConfig
from aiservices.storage import ModelStore

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "scripts" / "s3-server"
AWS_ENVIRONMENT = ROOT / "build" / "awscli"
BUCKET = "benchmark"
MIB = 2**20
THREADS = 10
"""As many files at once as the AWS tools take by default (``max_concurrent_requests``)."""

SETS: Mapping[str, tuple[int, int]] = {"one file of 1 GB": (1, 1024 * MIB), "2000 files of 256 KB": (2000, 256 * 1024)}
"""What is measured: how many files, and their bytes."""


@attrs.frozen
class Server:
    """An S3 server and the keys to it."""

    url: str
    key: str
    secret: str

    def client(self) -> Any:
        """Return boto3's client."""
        import boto3

        keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    @property
    def environment(self) -> dict[str, str]:
        """What the AWS tools read."""
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        return {**os.environ, **keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.url}


@attrs.frozen
class Run:
    """One download: from the call, or from the start of the command, to a complete folder."""

    seconds: float
    peak_mib: float


# --- the three ways; each in a process of its own ---


def with_store(server: Server, prefix: str, folder: Path) -> None:
    """Bring it as a service does."""
    import aioboto3  # noqa: F401 - the store imports it when it is asked for a bucket

    began = time.time()
    s3 = S3Config(
        endpoint_url=server.url, region="us-east-1", access_key_id=server.key, secret_access_key=server.secret
    )
    store = ModelStore(Config(server=ServerConfig(model_dir=folder), s3=s3))
    asyncio.run(store.resolve(f"s3://{BUCKET}/{prefix}/"))
    print(began, time.time(), flush=True)


def with_boto3(server: Server, prefix: str, folder: Path) -> None:
    """Bring it as scripts do: list, and let the transfer manager fetch so many files at once."""
    import boto3  # noqa: F401 - the server's client imports it

    began = time.time()
    client = server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page["Contents"]]
    folder.mkdir()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: client.download_file(BUCKET, key, str(folder / Path(key).name)), keys))
    print(began, time.time(), flush=True)


def aws_command(server: Server, prefix: str, folder: Path) -> list[str]:
    """Return the command line of the AWS tools."""
    return [str(AWS_ENVIRONMENT / "bin" / "aws"), "s3", "sync", "--quiet", f"s3://{BUCKET}/{prefix}/", str(folder)]


def fill(server: Server, prefix: str, folder: Path) -> None:
    """Upload what is measured, as the AWS tools would: large files in parts of 8 MB."""
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    with tempfile.TemporaryDirectory(dir=folder) as place, ThreadPoolExecutor(4) as pool:
        for number, (count, size) in enumerate(SETS.values()):
            source = Path(place) / "content"
            source.write_bytes(os.urandom(min(size, 16 * MIB)) * max(1, size // (16 * MIB)))
            names = [f"set{number}/{index}.bin" for index in range(count)]
            list(pool.map(lambda name, path=source: client.upload_file(str(path), BUCKET, name), names))


OWN = {"store": with_store, "boto3": with_boto3, "fill": fill}


def own_command(tool: str) -> Callable[[Server, str, Path], list[str]]:
    """Return the command line that runs one of the ways above."""

    def command(server: Server, prefix: str, folder: Path) -> list[str]:
        words = [tool, server.url, server.key, server.secret, prefix, str(folder)]
        return [sys.executable, "-m", "tools.benchmarks.store", "--one", *words]

    return command


TOOLS: Mapping[str, Callable[[Server, str, Path], list[str]]] = {
    "store": own_command("store"),
    "aws s3 sync": aws_command,
    "boto3": own_command("boto3"),
}


# --- the measurement ---


def measure(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run a command to its end; its time and its peak memory."""
    began = time.time()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    called, ended = map(float, told.splitlines()[-1].split()) if told else (began, time.time())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with exit code {process.returncode}: {' '.join(command)}")
    return Run(ended - called, usage.ru_maxrss / 1024)


def measure_all(server: Server, prefix: str, rounds: int, folder: Path) -> dict[str, list[Run]]:
    """Let the tools take turns, so that a noisy moment hits them alike."""
    runs: dict[str, list[Run]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool, command in TOOLS.items():
            target = folder / "target"
            runs[tool].append(measure(command(server, prefix, target), server.environment))
            shutil.rmtree(target)
            os.sync()  # what one left to be written must not slow the next
    return runs


def report(name: str, total_bytes: int, runs: Mapping[str, Sequence[Run]]) -> None:
    """Print one line for each tool and the ratio that matters."""
    seconds = {tool: median(run.seconds for run in some) for tool, some in runs.items()}
    print(f"\n{name}")
    for tool, some in runs.items():
        peak = max(run.peak_mib for run in some)
        times = " ".join(f"{run.seconds:.2f}" for run in some)
        speed = total_bytes / seconds[tool] / 1e6
        print(f"  {tool:<12} {seconds[tool]:7.2f} s  {speed:6.0f} MB/s  peak {peak:4.0f} MiB   ({times})")
    best = min(seconds[tool] for tool in runs if tool != "store")
    print(f"  the store takes {seconds['store'] / best:.2f} of the time of the better of the others", flush=True)


# --- what is needed for it ---


@contextmanager
def running_server() -> Iterator[Server]:
    """Start an S3 server and fill it."""
    with tempfile.TemporaryDirectory(prefix="benchmark-s3-") as folder:
        started = subprocess.run([SERVER, "start", folder], stdout=subprocess.PIPE, text=True, check=True)
        try:
            yield Server(*started.stdout.split())
        finally:
            subprocess.run([SERVER, "stop", folder], check=True)
            Path(folder).mkdir()  # which the with-statement wants to remove


def install_aws() -> None:
    """Put the AWS tools into an environment of their own, once: their botocore is another."""
    if not (AWS_ENVIRONMENT / "bin" / "aws").exists():
        venv.create(AWS_ENVIRONMENT, with_pip=True)
        subprocess.run([AWS_ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "awscli"], check=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where downloads are put")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tool, url, key, secret, prefix, folder = options.one
        OWN[tool](Server(url, key, secret), prefix, Path(folder))
        return
    install_aws()
    with running_server() as server, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        # In a process of its own: what this one ever took in memory would be taken for that of each it starts.
        subprocess.run(own_command("fill")(server, "", Path(folder)), cwd=ROOT, check=True)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{os.cpu_count()} cores, load {load} before; {options.rounds} rounds, into {options.folder}")
        for number, (name, (count, size)) in enumerate(SETS.items()):
            report(name, count * size, measure_all(server, f"set{number}", options.rounds, Path(folder)))


if __name__ == "__main__":
    main()
