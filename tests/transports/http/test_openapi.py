"""The OpenAPI document: valid, whole, and true to what the server does."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import attrs
import pytest
from msgspec import Meta

from aiservices.handler import BatchHandler, Task, output_file
from aiservices.inputs import read_input
from aiservices.settings import ServerConfig
from aiservices.transports.http.examples import example
from aiservices.transports.http.jobs import OPERATIONS
from tests.fakes import Counting, Upper
from tests.transports.http.apps import Client, MakeClient, make_app, read

validation = pytest.importorskip("openapi_spec_validator", reason="pip install openapi-spec-validator")
schema_validation = pytest.importorskip("openapi_schema_validator", reason="pip install openapi-spec-validator")


@attrs.frozen
class Part:
    """A part of a rich input."""

    sizes: Annotated[list[Annotated[float, Meta(gt=0, le=2)]], Meta(min_length=2, max_length=3)]


@attrs.frozen
class RichInput:
    """Everything that a schema may hold."""

    name: Annotated[str, Meta(min_length=5, max_length=6)]
    kind: Literal["b", "a"]
    part: Part
    image_url: Annotated[str, Meta(examples=["https://example.com/mug.jpg"])]
    strict: bool
    level: Annotated[int, Meta(ge=3)]
    choice: Annotated[int, Meta(le=-3)] | None = None
    words: Annotated[list[str], Meta(description="Any words.")] = attrs.Factory(list)


@attrs.frozen
class RichOutput:
    """What comes of it."""

    parts: list[Part]
    scores: dict[str, float]


class Rich(BatchHandler[RichInput, RichOutput]):
    """Has a schema."""

    def predict(self, tasks: Sequence[Task[RichInput]]) -> list[RichOutput | Exception]:
        raise NotImplementedError


async def document_of(client: Client) -> dict[str, Any]:
    return await read(await client.get("/openapi.json"))


@attrs.frozen
class SoundOutput:
    """A file and what it is."""

    audio: Annotated[bytes, output_file("The sound.")]
    media_type: str


class Sounding(BatchHandler[RichInput, SoundOutput]):
    """Answers with a file."""

    def predict(self, tasks: Sequence[Task[RichInput]]) -> list[SoundOutput | Exception]:
        return [SoundOutput(b"", "audio/wav") for _ in tasks]


async def test_a_file_of_an_output_may_be_a_url(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Sounding))
    schemas = (await read(await client.get("/openapi.json")))["components"]["schemas"]
    assert schemas["SoundOutput"]["properties"]["audio"]["contentEncoding"] == "base64"
    assert schemas["SoundOutput"]["properties"]["audio_url"]["format"] == "uri"
    assert schemas["SoundOutput"]["required"] == ["media_type"]
    destination = {"anyOf": [{"$ref": "#/components/schemas/Destination"}, {"type": "null"}]}
    assert schemas["sounding.Run"]["properties"]["s3Config"] == destination


@pytest.mark.parametrize("fakes", [(Upper,), (Upper, Counting, Rich)])
@pytest.mark.parametrize("keys", [(), ("key",)])
async def test_the_document_is_valid(aiohttp_client: MakeClient, fakes: Any, keys: tuple[str, ...]) -> None:
    server = ServerConfig(grace_s=0.0, api_keys=keys)
    client = await aiohttp_client(make_app(*fakes, server=server, load="first_use"))
    validation.validate(await document_of(client))


async def test_every_operation_of_every_service_is_there(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Counting))
    document = await document_of(client)
    for service in ("upper", "counting"):
        for operation in OPERATIONS:
            described = document["paths"][f"/{service}/api/v1{operation.path}"]
            assert set(described) == {method.lower() for method in operation.methods}
    assert not any(path.startswith("/api/v1") for path in document["paths"])


async def test_a_single_service_is_described_at_its_short_mount_too(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    assert "/api/v1/run" in (await document_of(client))["paths"]


async def test_every_path_of_the_document_is_served(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, load="first_use"))
    for path, methods in (await document_of(client))["paths"].items():
        for method in methods:
            answer = await client.request(method, path.replace("{job_id}", "nope"))
            assert answer.status != 405, path
            assert answer.status != 404 or "job not found" in (await answer.json())["error"]


async def test_every_example_fits_its_schema(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper, Counting, Rich, load="first_use"))
    document = await document_of(client)
    contents = [content for content in _contents(document) if "example" in content]
    assert len(contents) > 30
    for content in contents:
        schema = {**content["schema"], "components": document["components"]}
        schema_validation.OAS31Validator(schema).validate(content["example"])


async def test_what_the_server_answers_fits_the_document(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    document = await document_of(client)
    given = document["paths"]["/upper/api/v1/runsync"]["post"]["requestBody"]["content"]["application/json"]["example"]
    done = await read(await client.post("/upper/api/v1/runsync", json=given))
    assert done["status"] == "COMPLETED"
    answers = {
        "upper.Job": done,
        "Accepted": await read(await client.post("/upper/api/v1/run", json=given)),
        "Stream": await read(await client.get(f"/upper/api/v1/stream/{done['id']}")),
        "Cancelled": await read(await client.post(f"/upper/api/v1/cancel/{done['id']}")),
        "Purged": await read(await client.post("/upper/api/v1/purge-queue")),
        "Jobs": await read(await client.get("/upper/api/v1/jobs")),
        "Health": await read(await client.get("/upper/api/v1/health")),
        "Error": await read(await client.get("/upper/api/v1/status/nope"), 404),
    }
    for name, answer in answers.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        schema_validation.OAS31Validator(schema).validate(answer)


@pytest.mark.parametrize("absent", ["webhook", "policy", "s3Config"])
async def test_null_is_described_where_it_is_taken(aiohttp_client: MakeClient, absent: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    schema = (await document_of(client))["components"]["schemas"]["upper.Run"]["properties"][absent]
    assert "null" in schema.get("type", ()) or {"type": "null"} in schema["anyOf"]
    answer = await client.post("/v2/upper/run", json={"input": {"text": "mug"}, absent: None})
    assert answer.status == 200


async def test_an_input_that_may_be_left_out_may_be_null(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Counting))
    schema = (await document_of(client))["components"]["schemas"]["TextInput"]
    optional = schema["properties"].keys() - set(schema["required"])
    assert optional
    for name in optional:
        assert {"type": "null"} in schema["properties"][name]["anyOf"]
        answer = await client.post("/v2/counting/run", json={"input": {"text": "mug", name: None}})
        assert answer.status == 200
    (number,) = (kind for kind in schema["properties"]["count"]["anyOf"] if kind != {"type": "null"})
    assert number["type"] == "integer"


@pytest.mark.parametrize(
    "url",
    [
        "0",
        "ftp://a.test",
        "https://",
        "https://300.1.1.1.1",
        "https://a b",
        f"https://{'0' * 64}.a",
        f"https://{'a.' * 126}aa",
    ],
)
async def test_a_store_that_is_no_url_fits_neither_the_document_nor_the_server(
    aiohttp_client: MakeClient, url: str
) -> None:
    client = await aiohttp_client(make_app(Upper))
    store = (await document_of(client))["components"]["schemas"]["Destination"]["properties"]["endpointUrl"]
    assert not re.search(store["pattern"], url)
    assert re.search(store["pattern"], "https://s3.eu-central-1.amazonaws.com")
    given = {"accessId": "a", "accessSecret": "b", "bucketName": "cups", "endpointUrl": url}
    answer = await client.post("/v2/upper/run", json={"input": {"text": "mug"}, "s3Config": given})
    assert "$.s3Config.endpointUrl" in (await read(answer, 400))["error"]


async def test_the_form_finds_limits_and_descriptions(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(make_app(Upper))
    schemas = (await document_of(client))["components"]["schemas"]
    text = schemas["TextInput"]["properties"]["text"]
    assert (text["minLength"], text["maxLength"], text["description"]) == (1, 100, "Any text.")
    assert schemas["TextInput"]["additionalProperties"] is False


async def test_keys_are_asked_for_where_they_are_needed(aiohttp_client: MakeClient) -> None:
    server = ServerConfig(grace_s=0.0, api_keys=("key",))
    client = await aiohttp_client(make_app(Upper, server=server))
    document = await document_of(client)
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/readyz"]["get"]["security"] == []
    assert "security" not in document["paths"]["/metrics"]["get"]


def test_an_example_shows_what_is_required_or_usual_and_at_least_something() -> None:
    url, word = {"type": "string", "examples": ["https://example.com"], "default": None}, {"type": "string"}
    assert example({"type": "object", "properties": {"a": url, "b": url}}, {}) == {"a": "https://example.com"}
    usual = {"type": "string", "examples": ["x"]}
    properties = {"n": {"const": 1}, "usual": usual, "rare": word, "left_out": url}
    assert example({"type": "object", "properties": properties, "required": ["n"]}, {}) == {"n": 1, "usual": "x"}
    assert example({"type": "object"}, {}) == {}


@pytest.mark.parametrize("module", ["qwen:DescribeImage", "mistral:GenerateDescription"])
async def test_examples_of_the_text_services_fit_their_schemas(aiohttp_client: MakeClient, module: str) -> None:
    path, _, name = module.partition(":")
    handler = getattr(importlib.import_module(f"aiservices.handlers.{path}"), name)
    client = await aiohttp_client(make_app(handler, load="first_use"))
    document = await document_of(client)
    for content in [content for content in _contents(document) if "example" in content]:
        schema = {**content["schema"], "components": document["components"]}
        schema_validation.OAS31Validator(schema).validate(content["example"])
    inputs = document["components"]["schemas"][handler.Input.__name__]
    shown = example(inputs, document["components"]["schemas"])
    handler().validate(read_input(handler.Input, shown))


def test_an_example_of_an_unknown_type_is_null() -> None:
    assert example({}, {}) is None


def _contents(node: Any) -> list[Any]:
    """Every media type object of the document."""
    if isinstance(node, list):
        return [found for child in node for found in _contents(child)]
    if not isinstance(node, dict):
        return []
    own = [media for media in node["content"].values() if "schema" in media] if "content" in node else []
    return own + [found for child in node.values() for found in _contents(child)]


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.eu-central-1.amazonaws.com",
        "https://store.some.deep.example.com:9000/base",
        "http://203.0.113.200:65535",
        "https://[2606:4700::1111]:443",
    ],
)
async def test_the_endpoints_that_are_taken_fit_the_documents_pattern(aiohttp_client: MakeClient, url: str) -> None:
    client = await aiohttp_client(make_app(Upper))
    store = (await document_of(client))["components"]["schemas"]["Destination"]["properties"]["endpointUrl"]
    assert re.search(store["pattern"], url)
