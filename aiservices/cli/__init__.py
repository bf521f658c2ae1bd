"""The command line, ``python -m aiservices``: what each command takes; its work is in the module of its name.

Nothing but the standard library is imported before a command runs, so every ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    """The job failed, the check found something, the address is taken."""
    USAGE = 2
    """The command line or the settings are wrong."""
    BROKEN = 3
    """A model's device is beyond repair in this process: start a new one."""
    INTERRUPTED = 130
    """Ctrl-C."""


EPILOG = """\
exit codes: 0 done; 1 it failed; 2 the command line or the settings are wrong;
3 a model's device is beyond repair (start a new process); 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None takes the process's own.

    Returns:
        One of :class:`Exit`.
    """
    options = parse(arguments)
    command = importlib.import_module(f"aiservices.cli.{options.command.replace('-', '_')}")
    from aiservices.errors import ConfigError, InvalidInput, ServiceError, UnknownService

    try:
        return int(command.run(options, os.environ))
    except (ConfigError, InvalidInput, UnknownService) as error:
        complain(str(error))
        return Exit.USAGE
    except ServiceError as error:
        complain(str(error))
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves the process where it is wrong."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes the fields of "run" only in one piece, but options may well stand between them.
    fields = [word for word in rest if options.command == "run" and "=" in word and not word.startswith("-")]
    if unknown := [word for word in rest if word not in fields]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest_option(unknown[0], options.command)}")
    if fields:
        options.fields.extend(fields)
    return options


class _Parser(argparse.ArgumentParser):
    """Names the right word beside a wrong one."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            wrong, right = found.groups()
            message += _nearest(wrong, re.findall(r"'([^']+)'", right))
        super().error(message)


def _nearest(wrong: str, right: Sequence[str]) -> str:
    found = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _nearest_option(wrong: str, command: str) -> str:
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return _nearest(wrong.partition("=")[0], list(commands.choices[command]._option_string_actions))


def complain(text: str) -> None:
    """Tell the person at the terminal what is wrong."""
    print(f"aiservices: {text}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """Describe every command."""
    parser = _Parser(
        prog="aiservices",
        description="Serve AI models as jobs, or run one job here and now.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[_common()], allow_abbrev=False)

    serve = add("serve", "Serve the profile's services over HTTP until told to stop.")
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", type=_port, help="0 takes any free one")
    runpod = add("runpod", "Work as a RunPod serverless worker on the profile's services until told to stop.")
    runpod.add_argument("--slots", type=_count, metavar="N", help="jobs to hold at once (default: four batches)")
    runpod.add_argument("--stream", action="store_true", help="stream chunks; outputs become lists, the result last")
    _offer_json(add("services", "List the services of the profile, and every profile."))
    _offer_json(add("check", "Check settings, packages, models and memory without loading anything."))
    _describe_jobs(add("jobs", "See and steer the jobs of a server, or see those of a journal."))
    pull = add("pull", "Download models, so that the first start finds them.")
    pull.add_argument("what", nargs="?", metavar="PROFILE|SERVICE|URI", help="whose models (default: the profile's)")
    models = add("models", "List the models that were downloaded, or remove one.")
    models.add_argument("action", nargs="?", choices=["rm"], metavar="rm", help="remove all versions of a model")
    models.add_argument("name", nargs="?", metavar="MODEL", help="as the list names it, or its folder")
    _offer_json(models)
    push = add("push", "Upload a folder to a bucket, with a manifest of its checksums.")
    push.add_argument("folder", type=Path, metavar="FOLDER")
    push.add_argument("uri", metavar="s3://BUCKET/PREFIX/")
    new = add("new-service", "Begin a service of your own: its class, its test, its table in the settings.")
    new.add_argument("name", metavar="NAME", help="as in its URL: lower-case letters, digits and '-'")
    _describe_run(add("run", "Run one job in this process and print its output as JSON."))
    return parser


def _common(**settings: Any) -> _Parser:
    common = _Parser(add_help=False, **settings)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings (default: services.toml)")
    common.add_argument("--profile", metavar="NAME", help="which profile of them (default: what they name)")
    return common


def _offer_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document")


def _describe_jobs(jobs: argparse.ArgumentParser) -> None:
    # What stands before the action must not be undone by the defaults of what may stand behind it.
    common = _common(argument_default=argparse.SUPPRESS)
    common.add_argument("--service", metavar="NAME", help="only this one's jobs (default: every service's)")
    _offer_json(common)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--url", help="address of the server (default: as the settings say)")
    where.add_argument("--journal", type=Path, metavar="FILE", help="read a file that no server uses")
    jobs.set_defaults(service=None, json=False, url=None, journal=None)
    actions = jobs.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)

    shown = add("list", "List jobs, the newest first.")
    shown.add_argument("--status", metavar="STATUS,…", help="only jobs that stand so, as FAILED,TIMED_OUT")
    shown.add_argument("--limit", type=_count, default=100, metavar="N", help="most jobs (default: 100)")
    for name, text in (
        ("show", "Show all that is known of a job, its output too."),
        ("cancel", "End a job, in the queue or on the model."),
        ("retry", "Put a FAILED or TIMED_OUT job back into the queue."),
    ):
        add(name, text).add_argument("id", metavar="ID", help="as the list shows it")


def _describe_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("service", metavar="SERVICE", help="a service of the profile")
    run.add_argument(
        "fields",
        nargs="*",
        metavar="KEY=VALUE",
        help="a field of the input; KEY=@FILE sends a file: as data: URL where KEY ends in _url, else as text",
    )
    run.add_argument("--output", type=Path, metavar="FILE", help="write the audio (else the JSON) to a file")
    run.add_argument("-v", "--verbose", action="store_true", help="show the log")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; expected 1 or more")
    return int(text)
