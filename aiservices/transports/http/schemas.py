"""The schemas of the OpenAPI document: the handlers' classes as msgspec describes them, and the wire's own objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aiservices.jobs import Destination, JobStatus
from aiservices.outputs import file_fields
from aiservices.service import Service
from aiservices.transports.http.body import RunPolicy
from aiservices.transports.http.examples import example

Json = dict[str, Any]

JOB_ID = "7c1c3a1e-6d2b-4a7e-9f55-2f0a8a6f3b10"
"""The job of every example."""

_REF = "#/components/schemas/{name}"


def schemas(services: Sequence[Service]) -> Json:
    """Return every schema by name; those of one service are called ``{service}.Run`` and ``{service}.Job``."""
    classes = [cls for service in services for cls in (service.handler.Input, service.handler.Output)]
    refs, components = msgspec.json.schema_components([*classes, RunPolicy, Destination], ref_template=_REF)
    common = {"policy": _or_null(refs[-2]), "s3Config": _or_null(refs[-1])}
    named: Json = {**components, **_COMMON_SCHEMAS}
    for service, given, made in zip(services, refs[0::2], refs[1::2], strict=False):
        _close(components[_name(given)])
        named[f"{service.name}.Run"] = _run_schema(given, common, example(given, components))
        named[f"{service.name}.Job"] = _job_schema(made, example(made, components))
        _allow_urls(service, components[_name(made)])
    return named


def _close(given: Json) -> None:
    """No other fields than these; each that may be left out may be ``null`` as well."""
    given["additionalProperties"] = False
    for name in given["properties"].keys() - set(given.get("required", ())):
        given["properties"][name] = _nullable(given["properties"][name])


def _nullable(field: Json) -> Json:
    own: Json = {name: field[name] for name in ("title", "description", "default", "examples") if name in field}
    kinds = field["anyOf"] if "anyOf" in field else [{name: field[name] for name in field.keys() - own.keys()}]
    return {**own, "anyOf": kinds if {"type": "null"} in kinds else [*kinds, {"type": "null"}]}


def _allow_urls(service: Service, made: Json) -> None:
    """A file of an output may be in a bucket: then its URL stands in its place."""
    for name, _ in file_fields(service.handler.Output):
        about = f"Where {name} lies, signed and for a time, if it went to a bucket."
        made["properties"][f"{name}_url"] = {"type": "string", "format": "uri", "description": about}
        made["required"] = [field for field in made.get("required", ()) if field != name]


def _run_schema(given: Json, common: Json, shown: Any) -> Json:
    return {
        "type": "object",
        "required": ["input"],
        "properties": {
            "input": {"anyOf": [given, ref("WarmUp")]},
            "webhook": {
                "type": ["string", "null"],
                "format": "uri",
                "description": "Gets the job when it has ended, as a POST.",
            },
            **common,
        },
        "examples": [{"input": shown}],
    }


def _job_schema(made: Json, shown: Any) -> Json:
    ended = {"id": JOB_ID, "status": "COMPLETED", "delayTime": 12, "executionTime": 340, "workerId": "worker-1"}
    return {
        "type": "object",
        "required": ["id", "status"],
        "properties": {
            **_JOB_FIELDS,
            "output": {"anyOf": [made, ref("Progress"), ref("WarmedUp"), ref("InBucket")]},
        },
        "examples": [{**ended, "output": shown}],
    }


def _object(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


def _counts(*names: str) -> Json:
    return _object(list(names), **{name: {"type": "integer", "minimum": 0} for name in names})


def ref(name: str) -> Json:
    """Refer to a schema."""
    return {"$ref": _REF.format(name=name)}


def _or_null(schema: Json) -> Json:
    """Clients in languages with optional fields send ``null`` for what they leave out."""
    return {"anyOf": [schema, {"type": "null"}]}


def _name(ref: Json) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


_JOB_FIELDS: Mapping[str, Json] = {
    "id": {"type": "string"},
    "status": ref("JobStatus"),
    "delayTime": {"type": "integer", "minimum": 0, "description": "Time in the queue, in milliseconds."},
    "executionTime": {"type": "integer", "minimum": 0, "description": "Time on the model, in milliseconds."},
    "workerId": {"type": "string"},
    "retries": {"type": "integer", "minimum": 1},
    "queuePosition": {"type": "integer", "minimum": 1, "description": "1 is the next to be taken."},
    "reason": {"type": "string", "description": "Why the job waits."},
    "error": {"type": "string"},
}
_LISTED_FIELDS: Mapping[str, Json] = {
    **_JOB_FIELDS,
    "createdAt": {"type": "string", "format": "date-time", "description": "When the job was accepted."},
    "progress": {"type": "number", "minimum": 0, "maximum": 1},
    "error": {"type": "string", "description": "The first 300 characters; the status object has all."},
    "tenant": {"type": "string", "description": "Whose job it is; for operators."},
    "key": {"type": "string", "description": "Name of the key that it came with; for operators."},
}
_LISTED = {"id": JOB_ID, "status": "COMPLETED", "createdAt": "2026-03-01T09:30:00.000000+00:00", "executionTime": 340}

_COMMON_SCHEMAS: Mapping[str, Json] = {
    "JobStatus": {"type": "string", "enum": [status.value for status in JobStatus]},
    "WarmUp": _object(["action"], action={"const": "warmup", "description": "Loads the model and runs nothing."}),
    "WarmedUp": _object(["state"], state={"type": "string", "examples": ["READY"]}),
    "InBucket": _object(["output_url"], output_url={"type": "string", "format": "uri"}),
    "Progress": _object(["progress"], progress={"type": "number", "minimum": 0, "maximum": 1}),
    "Accepted": _object(
        ["id", "status"],
        id={"type": "string", "examples": [JOB_ID]},
        status=ref("JobStatus"),
        journalled={"const": False, "description": "Present where the job does not survive the process."},
    ),
    "Cancelled": _object(
        ["id", "status"],
        id={"type": "string", "examples": [JOB_ID]},
        status={**ref("JobStatus"), "examples": ["CANCELLED"]},
    ),
    "Purged": _object(["removed", "status"], removed={"type": "integer", "minimum": 0}, status={"const": "completed"}),
    "Jobs": {
        **_object(
            ["jobs"],
            jobs={"type": "array", "items": _object(["id", "status", "createdAt"], **_LISTED_FIELDS)},
            next={
                "type": "string",
                "description": "Present where older jobs may follow, also behind a short list: the next `before`.",
            },
        ),
        "examples": [{"jobs": [_LISTED], "next": JOB_ID}],
    },
    "Stream": _object(
        ["status", "stream"],
        status=ref("JobStatus"),
        stream={"type": "array", "items": _object(["output"], output={"examples": ["a piece of text"]})},
    ),
    "Health": _object(
        ["jobs", "workers"],
        jobs=_counts("completed", "failed", "inProgress", "inQueue", "retried"),
        workers=_counts("idle", "initializing", "ready", "running", "throttled", "unhealthy"),
    ),
    "Voices": _object(
        ["voices"],
        voices={
            "type": "array",
            "items": _object(
                ["name", "description"],
                name={"type": "string", "examples": ["english-gb"]},
                description={"type": "string"},
                language={"type": "string"},
            ),
        },
    ),
    "Error": _object(
        ["error"],
        error={"type": "string"},
        status={"const": "FAILED"},
        id={"type": "string"},
        requestId={"type": "string"},
        services={"type": "array", "items": {"type": "string"}},
    ),
}
