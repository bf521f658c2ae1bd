"""Describe the running profile as OpenAPI 3.1: the operations' table and the handlers' classes, nothing written twice.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import aiservices
from aiservices.jobs import DEFAULT_LIMIT, MAX_LIMIT
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.transports.http import openai_speech
from aiservices.transports.http.examples import example
from aiservices.transports.http.jobs import OPERATIONS, Operation
from aiservices.transports.http.lookup import LONGEST_WAIT_MS, SHORTEST_WAIT_MS
from aiservices.transports.http.process import ENDPOINTS, Endpoint
from aiservices.transports.http.schemas import JOB_ID, Json, ref, schemas

_SECURITY: list[Json] = [{"key": []}]
_ERRORS: Mapping[int, tuple[str, Json]] = {
    400: ("The body or a parameter does not fit.", {"status": "FAILED", "error": "$.text: this field is required"}),
    401: ("The key is missing or wrong.", {"error": "unauthorized"}),
    404: (
        "No such job, or its result has expired.",
        {"id": JOB_ID, "status": "FAILED", "error": "job not found or expired"},
    ),
    409: ("The job's state, or an idempotency key used before, does not allow it.", {"error": "the job has not ended"}),
    410: (
        "The end of this cancelled job's stream was told before.",
        {"id": JOB_ID, "status": "FAILED", "error": "the job was cancelled and its stream has been read to the end"},
    ),
    413: ("The body is too large.", {"status": "FAILED", "error": "the body is larger than 10485760 bytes"}),
    415: ("The body is compressed.", {"status": "FAILED", "error": "compressed bodies are not taken"}),
    429: ("The queue is full, or the key has what it may have.", {"status": "FAILED", "error": "the queue is full"}),
    500: ("An error of the server's own; its log says more.", {"error": "internal error", "requestId": "4f0c"}),
    503: ("The service takes no jobs now.", {"status": "FAILED", "error": "the server is shutting down"}),
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
_ABOUT = (
    "AI models as jobs. Each service speaks the wire contract of RunPod's serverless endpoints. "
    "Beside the paths below the same operations answer under `/v2/{service}/…` and `/{service}/…`."
)


def describe(registry: Registry) -> Json:
    """Build the document of the registry's services."""
    services = list(registry.services.values())
    secured = registry.config.server.needs_keys
    single = len(services) == 1
    named = schemas(services)
    paths = {endpoint.path: _endpoint(endpoint, secured) for endpoint in ENDPOINTS if endpoint.documented}
    for service in services:
        paths |= dict(_operations(service, f"/{service.name}/api/v1", f"{service.name}-", named))
    if single:
        paths |= dict(_operations(services[0], "/api/v1", "", named))
    if any(map(openai_speech.is_speech, services)):
        paths[openai_speech.PATH] = openai_speech.describe()
    components = {"schemas": named, "responses": dict(_error_responses()), "securitySchemes": _SECURITY_SCHEMES}
    return {
        "openapi": "3.1.0",
        "info": {"title": "aiservices", "version": aiservices.__version__, "description": _ABOUT},
        "tags": [{"name": service.name, "description": _about(service)} for service in services] + [_PROCESS_TAG],
        **({"security": _SECURITY} if secured else {}),
        "paths": paths,
        "components": components,
    }


_PROCESS_TAG = {"name": "process", "description": "The process itself: page, probes, metrics."}
_SECURITY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "The bare key in `Authorization` is taken as well."}
}


def _about(service: Service) -> str:
    return (service.handler.Input.__doc__ or "").strip()


def _operations(service: Service, mount: str, prefix: str, named: Json) -> Iterator[tuple[str, Json]]:
    for operation in OPERATIONS:
        entries = {}
        for method in operation.methods:
            suffix = "-post" if method == "POST" and len(operation.methods) > 1 else ""
            entries[method.lower()] = _operation(service, operation, f"{prefix}{operation.name}{suffix}", named)
        yield mount + operation.path, entries


def _operation(service: Service, operation: Operation, operation_id: str, named: Json) -> Json:
    has_job = "{job_id}" in operation.path
    parameters = [
        *([_JOB_ID_PARAMETER] if has_job else []),
        *([_WAIT_PARAMETER] if operation.waits else []),
        *(_LIST_PARAMETERS if operation.lists else []),
    ]
    errors = sorted({*operation.errors, 401, 500, 503, *([404] if has_job else [])})
    described: Json = {
        "operationId": operation_id,
        "tags": [service.name],
        "summary": _first_line(operation.handle.__doc__),
        "parameters": parameters,
        "responses": {
            "200": _answer(service, operation, named),
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in errors},
        },
    }
    if operation.reads_body:
        parameters.append(_IDEMPOTENCY_PARAMETER)
        described["requestBody"] = _request_body(service, named)
    return described


_JOB_ID_PARAMETER = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}, "example": JOB_ID}
_WAIT_PARAMETER = {
    "name": "wait",
    "in": "query",
    "description": "How long to wait, in milliseconds.",
    "schema": {"type": "integer", "minimum": SHORTEST_WAIT_MS, "maximum": LONGEST_WAIT_MS},
}
_LIST_PARAMETERS = [
    {
        "name": "status",
        "in": "query",
        "description": "Only jobs that stand so; several words are separated by commas.",
        "style": "form",
        "explode": False,
        "schema": {"type": "array", "items": ref("JobStatus"), "minItems": 1},
    },
    {
        "name": "limit",
        "in": "query",
        "description": "Most jobs of one answer.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    },
    {
        "name": "before",
        "in": "query",
        "description": "Only jobs older than the one of this id, as `next` names it.",
        "schema": {"type": "string"},
    },
]
_IDEMPOTENCY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and request return the same job instead of a new one.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}


def _request_body(service: Service, named: Json) -> Json:
    name = f"{service.name}.Run"
    return {
        "required": True,
        "description": "A body without `input` is taken as the input itself.",
        "content": {"application/json": {"schema": ref(name), "example": example(named[name], named)}},
    }


def _answer(service: Service, operation: Operation, named: Json) -> Json:
    own = f"{service.name}.{operation.answer}"
    name = own if own in named else operation.answer
    content: Json = {"application/json": {"schema": ref(name), "example": example(named[name], named)}}
    if operation.answer == "Stream":
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "Done.", "content": content}


def _endpoint(endpoint: Endpoint, secured: bool) -> Json:
    schema = {"type": "object"} if endpoint.content_type == "application/json" else {"type": "string"}
    content = {endpoint.content_type: {"schema": schema}}
    described: Json = {
        "operationId": endpoint.handle.__name__,
        "tags": [_PROCESS_TAG["name"]],
        "summary": _first_line(endpoint.handle.__doc__),
        "responses": {
            str(status): {"description": _STATUS_WORDS[status], **({} if status == 204 else {"content": content})}
            for status in endpoint.statuses
        },
    }
    if secured and endpoint.public:
        described["security"] = []
    return {"get": described}


_STATUS_WORDS = {200: "Yes.", 204: "Still loading.", 503: "No."}


def _error_responses() -> Iterator[tuple[str, Json]]:
    for status, (description, shown) in _ERRORS.items():
        content = {"application/json": {"schema": ref("Error"), "example": shown}}
        headers = {"headers": _RETRY_AFTER} if status in (429, 503) else {}
        yield str(status), {"description": description, "content": content, **headers}


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]
