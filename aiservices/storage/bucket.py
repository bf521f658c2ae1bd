"""Everything below a prefix of an S3 bucket, through ``aioboto3``."""

from __future__ import annotations

from pathlib import Path

from aiservices.config import S3Config
from aiservices.errors import ServiceError


async def download(uri: str, folder: Path, settings: S3Config) -> Path:
    """Return the local copy, whole."""
    raise ServiceError(f"model {uri!r}: models on s3:// are not supported yet")


async def describe(uri: str, folder: Path, settings: S3Config) -> str:
    """Say where it is, or how much would be downloaded."""
    raise ServiceError(f"model {uri!r}: models on s3:// are not supported yet")
