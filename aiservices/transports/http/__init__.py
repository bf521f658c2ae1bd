"""The HTTP transport: RunPod's job API, probes, OpenAPI and the playground page over one registry."""

from aiservices.transports.http.app import create_app

__all__ = ["create_app"]
