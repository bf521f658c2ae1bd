"""Requests to an S3 store, signed without asking it: AWS Signature Version 4, of botocore, in path style."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from urllib.parse import quote

import attrs
from yarl import URL

from aiservices.errors import ServiceError
from aiservices.jobs import Destination, OutputFile

_AWS_REGION = re.compile(r"//(?:[^/]*\.)?s3[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com")


@attrs.frozen
class SignedUpload:
    """One file's PUT, and where it is read afterwards.

    Attributes:
        url: of the PUT.
        headers: of the PUT; its signature is among them.
        read_url: signed for a GET; a secret.
    """

    url: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    read_url: str = attrs.field(repr=False)


def sign_upload(destination: Destination, key: str, file: OutputFile, *, url_lifetime_s: int) -> SignedUpload:
    """Sign the PUT of a file, and a URL to read it. Hashes the file: heavy for a large one.

    Args:
        destination: the caller's bucket, its endpoint checked.
        key: of the object.
        file: what to upload.
        url_lifetime_s: seconds that the URL to read is valid.

    Raises:
        ServiceError: botocore is not installed.
    """
    try:
        from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    except ImportError:
        raise ServiceError("the package aioboto3 is not installed (scripts/install PROFILE --with s3)") from None
    endpoint = str(URL(destination.endpoint_url)).rstrip("/")
    url = f"{endpoint}/{quote(destination.bucket_name)}/{quote(key, safe='/~')}"
    keys = Credentials(destination.access_id, destination.access_secret)
    found = _AWS_REGION.search(endpoint)
    region = found[1] if found else "us-east-1"
    # The store refuses a body that came broken: every store knows this header, few know the newer checksums.
    digest = base64.b64encode(hashlib.md5(file.data, usedforsecurity=False).digest()).decode()
    headers = {"Content-Type": file.media_type, "Content-MD5": digest}
    put = AWSRequest(method="PUT", url=url, data=file.data, headers=headers)
    S3SigV4Auth(keys, "s3", region).add_auth(put)
    read = AWSRequest(method="GET", url=url)
    S3SigV4QueryAuth(keys, "s3", region, expires=url_lifetime_s).add_auth(read)
    return SignedUpload(url, dict(put.headers.items()), read.url)
