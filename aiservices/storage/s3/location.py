"""Parse ``s3://`` URIs, and select the files that are wanted."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from urllib.parse import parse_qs

import attrs

from aiservices.errors import ServiceError

WEIGHTS = frozenset(
    f".{name}"
    for name in (
        *("safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "onnx", "npz", "npy", "h5", "msgpack"),
        *("nemo", "tflite", "pb", "engine", "pkl"),
    )
)
"""Suffixes of files that hold weights: a prefix without one of them holds no model."""

_URI = re.compile(
    r"^s3://(?P<bucket>[a-z0-9][a-z0-9._-]{1,62})(?:/(?P<prefix>[^?#]*))?(?:\?(?P<query>[^#]*))?$", re.ASCII
)


@attrs.frozen
class Location:
    """What ``s3://bucket/prefix/?files=a,b&exclude=c`` names.

    Attributes:
        prefix: without the last slash; "" is the whole bucket.
        files: glob patterns of what is wanted; empty for everything.
        exclude: glob patterns of what is left out of that.
    """

    uri: str
    bucket: str
    prefix: str = ""
    files: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def below(self) -> str:
        """The prefix with its last slash, which the keys of all its objects begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def name(self) -> str:
        """The URI without patterns."""
        return f"s3://{self.bucket}/{self.below}"


def parse(uri: str) -> Location:
    """Read an ``s3://`` URI.

    Raises:
        ServiceError: it is not a valid one.
    """
    match = _URI.match(uri)
    query = parse_qs(match["query"] or "") if match else {}
    if match is None or query.keys() - {"files", "exclude"}:
        raise ServiceError(f"model {uri!r}: expected s3://bucket/prefix/, and ?files=a,b&exclude=c if not all of it")
    patterns = {key: tuple(part for text in texts for part in text.split(",") if part) for key, texts in query.items()}
    return Location(uri, match["bucket"], (match["prefix"] or "").strip("/"), **patterns)


def select_files(location: Location, paths: list[str]) -> list[str]:
    """Return the paths that are wanted, in their order.

    Where no files are named, ``.bin`` files beside ``.safetensors`` are left out: they hold the same weights.
    """
    wanted = [path for path in paths if not location.files or _matches(path, location.files)]
    wanted = [path for path in wanted if not _matches(path, location.exclude)]
    if location.files:
        return wanted
    safe = {PurePosixPath(path).parent for path in wanted if path.endswith(".safetensors")}
    return [path for path in wanted if not (_is_bin(path) and PurePosixPath(path).parent in safe)]


def holds_weights(paths: list[str]) -> bool:
    """Whether any of the files holds weights, by its suffix."""
    return any(PurePosixPath(path).suffix.lower() in WEIGHTS for path in paths)


def _is_bin(path: str) -> bool:
    return path.endswith((".bin", ".bin.index.json"))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Match the whole path or the file's name."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in patterns)
