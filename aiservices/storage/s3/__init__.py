"""Models in an S3 bucket, through ``aioboto3``: list, download, verify, store; and upload."""
