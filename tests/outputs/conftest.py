"""An S3 server for the tests of outputs: moto on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.outputs.samples import BUCKET, SECRET


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """An S3 server with one bucket; its URL."""
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[server]' (the test extra)")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    import boto3

    url = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield url
    server.stop()
