"""A repository of a model hub, through ``huggingface_hub``; blocking, so called in a thread.

The files are in the hub client's own cache, in a folder of the store: it survives interrupted downloads, shares files
between revisions and knows without a network whether a snapshot is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import attrs

from aiservices.errors import ServiceError

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
"""What is fetched of a repository: weights as safetensors, and the small files that describe them."""

ALL = ("*",)
"""What is fetched of a repository that is not a model."""

NOT_FILES = ("*consolidated*", "original/*", "onnx/*", "openvino/*", "gguf/*")
"""Copies of the same weights, in formats of other runtimes; Mistral's repositories would be twice their size."""

_URI = re.compile(
    r"^hf://(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?:\?(?P<query>[^?#]*))?$", re.ASCII
)


@attrs.frozen
class HubModel:
    """What an ``hf://organisation/name@revision?files=a,b`` names.

    Attributes:
        files: glob patterns of what is wanted.
    """

    uri: str
    repository: str
    revision: str = "main"
    files: tuple[str, ...] = FILES

    @property
    def not_files(self) -> tuple[str, ...]:
        """Patterns of what is left out; none where the URI names files."""
        return NOT_FILES if self.files == FILES else ()


def parse(uri: str, files: tuple[str, ...] = FILES) -> HubModel:
    """Read an ``hf://`` URI.

    Args:
        files: what is wanted unless the URI names files.

    Raises:
        ServiceError: it is not a valid one.
    """
    match = _URI.match(uri)
    query = parse_qs(match["query"] or "") if match else {}
    if match is None or query.keys() - {"files"}:
        raise ServiceError(f"model {uri!r}: expected hf://organisation/name@revision, and ?files=a,b if not all of it")
    named = tuple(part for value in query.get("files", []) for part in value.split(",") if part)
    return HubModel(uri, match["repository"], match["revision"] or "main", named or files)


def download(uri: str, folder: Path, files: tuple[str, ...] = FILES) -> Path:
    """Return the local folder of a repository's snapshot, complete; download what is missing.

    Raises:
        ServiceError: it cannot be downloaded; says what to do.
    """
    model = parse(uri, files)
    with _explained(model, folder):
        return Path(str(_snapshot(model, folder)))


def describe(uri: str, folder: Path, files: tuple[str, ...] = FILES) -> str:
    """Say where it is, or how much would be downloaded.

    Raises:
        ServiceError: it is not here, and the hub cannot be asked.
    """
    model = parse(uri, files)
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    with _explained(model, folder):
        try:
            return f"in {_snapshot(model, folder, local_files_only=True)}"
        except (LocalEntryNotFoundError, IncompleteSnapshotError):
            found = _snapshot(model, folder, dry_run=True)
    missing = [file.file_size for file in found if file.will_download]
    return f"to be downloaded: {len(missing)} files, {sum(missing) / 2**30:.1f} GiB"


def find(uri: str, folder: Path) -> Path | None:
    """Return the local folder, None if the model is not here. Asks nobody.

    Raises:
        ServiceError: the URI is none.
    """
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(_snapshot(parse(uri), folder, local_files_only=True))
    except (LocalEntryNotFoundError, IncompleteSnapshotError):
        return None


def _snapshot(model: HubModel, folder: Path, **how: Any) -> Any:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        model.repository,
        revision=model.revision,
        cache_dir=folder,
        allow_patterns=list(model.files),
        ignore_patterns=list(model.not_files),
        **how,
    )


@contextmanager
def _explained(model: HubModel, folder: Path) -> Iterator[None]:
    """Turn the hub's errors into what an operator can do about them."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise ServiceError(
            f"model {model.uri!r}: the package huggingface-hub is not installed (scripts/install)"
        ) from None
    try:
        yield
    except errors.GatedRepoError:
        reason = "its licence has to be accepted on its page first; then set HF_TOKEN to a token of that account"
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private and HF_TOKEN holds no token that may read it"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {model.revision!r}"
    except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError, errors.DryRunError):
        reason = (
            f"the model hub cannot be reached and {folder} does not hold all of it; run 'python -m aiservices pull'"
            " where there is a network and copy that folder here, or name a local folder as the model"
        )
    except errors.HfHubHTTPError as error:
        reason = f"the model hub answered {error.response.status_code}; try again later"
    except OSError as error:
        reason = f"it could not be written to {folder}: {error.strerror or error}"
    else:
        return
    raise ServiceError(f"model {model.uri!r}: {reason}")
