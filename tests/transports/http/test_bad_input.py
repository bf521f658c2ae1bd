"""What the three services refuse before a job exists, in which words. No model is loaded for it."""

from __future__ import annotations

from typing import Any

import pytest

from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from aiservices.transports.http.lookup import REGISTRY
from tests.transports.http.apps import MakeClient, read

HANDLERS = {
    "describe": "aiservices.handlers.qwen:DescribeImage",
    "write": "aiservices.handlers.mistral:GenerateDescription",
    "speak": "aiservices.handlers.espeak:EspeakTextToSpeech",
}
PICTURE = {"image_url": "https://example.com/mug.jpg"}
PRODUCT = {"image_description": "A red mug."}
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
SPEECH = {"text": "A red mug."}

BAD_INPUT: list[tuple[str, dict[str, Any], str]] = [
    ("describe", {}, "$.image_url: this field is required"),
    ("describe", {"image_url": None}, "$.image_url: this field is required, or image_urls for several pictures"),
    ("describe", {"image_url": ""}, "$.image_url: expected at least 1 character"),
    ("describe", {"image_url": 7}, "$.image_url: expected str | null, got int"),
    ("describe", {"image_url": ["https://example.com"]}, "$.image_url: expected str | null, got array"),
    ("describe", {"image_url": {"url": "https://example.com"}}, "$.image_url: expected str | null, got object"),
    ("describe", {"image_url": "ftp://example.com/mug.jpg"}, "$.image_url: "),
    ("describe", {"image_url": "file:///etc/passwd"}, "$.image_url: "),
    ("describe", {"image_url": "javascript:alert(1)"}, "$.image_url: "),
    ("describe", {"image_url": "mug.jpg"}, "$.image_url: "),
    ("describe", {"image_urls": []}, "$.image_urls: expected at least 1 item"),
    ("describe", {"image_urls": ["https://example.com/mug.jpg"] * 9}, "$.image_urls: expected at most 8 items"),
    ("describe", {"image_urls": "https://example.com/mug.jpg"}, "$.image_urls: expected array | null, got str"),
    ("describe", {"image_urls": ["https://example.com/mug.jpg", ""]}, "$.image_urls[1]: expected at least 1 character"),
    ("describe", {"image_urls": ["https://example.com/mug.jpg", "mug.jpg"]}, "$.image_urls[1]: has to be an http, "),
    ("describe", {**PICTURE, "image_urls": ["https://example.com"]}, "$.image_urls: takes the place of image_url"),
    ("describe", {**PICTURE, "top_k": -1}, "$.top_k: expected int >= 0"),
    ("describe", {**PICTURE, "presence_penalty": 2.1}, "$.presence_penalty: expected float <= 2.0"),
    ("describe", {**PICTURE, "presence_penalty": -2.1}, "$.presence_penalty: expected float >= -2.0"),
    ("describe", {**PICTURE, "stop": ""}, "$.stop: expected at least 1 character"),
    ("describe", {**PICTURE, "stop": []}, "$.stop: expected at least 1 item"),
    ("describe", {**PICTURE, "stop": ["."] * 5}, "$.stop: expected at most 4 items"),
    ("describe", {**PICTURE, "stop": ["x" * 65]}, "$.stop[0]: expected at most 64 characters"),
    ("describe", {**PICTURE, "stop": 5}, "$.stop: expected str | array | null, got int"),
    ("describe", {**PICTURE, "system_prompt": "x" * 4001}, "$.system_prompt: expected at most 4000 characters"),
    ("describe", {"imageUrl": "https://example.com"}, "$.imageUrl: unknown field; did you mean 'image_url'?"),
    ("describe", {**PICTURE, "prompt": "x" * 4001}, "$.prompt: expected at most 4000 characters"),
    ("describe", {**PICTURE, "prompt": ["what"]}, "$.prompt: expected str | null, got array"),
    ("describe", {**PICTURE, "max_new_tokens": 0}, "$.max_new_tokens: expected int >= 1"),
    ("describe", {**PICTURE, "max_new_tokens": -1}, "$.max_new_tokens: expected int >= 1"),
    ("describe", {**PICTURE, "max_new_tokens": 32_769}, "$.max_new_tokens: expected int <= 32768"),
    ("describe", {**PICTURE, "max_new_tokens": 1.5}, "$.max_new_tokens: expected int | null, got float"),
    ("describe", {**PICTURE, "max_new_tokens": "20"}, "$.max_new_tokens: expected int | null, got str"),
    ("describe", {**PICTURE, "max_new_tokens": True}, "$.max_new_tokens: expected int | null, got bool"),
    ("describe", {**PICTURE, "temperature": -0.1}, "$.temperature: expected float >= 0.0"),
    ("describe", {**PICTURE, "temperature": 2.01}, "$.temperature: expected float <= 2.0"),
    ("describe", {**PICTURE, "temperature": "hot"}, "$.temperature: expected float | null, got str"),
    ("describe", {**PICTURE, "top_p": 0}, "$.top_p: expected float > 0.0"),
    ("describe", {**PICTURE, "top_p": 1.1}, "$.top_p: expected float <= 1.0"),
    ("describe", {**PICTURE, "seed": -1}, "$.seed: expected int >= 0"),
    ("describe", {**PICTURE, "seed": 2**53}, "$.seed: expected int <= 9007199254740991"),
    ("describe", {**PICTURE, "seed": 10**18}, "$.seed: expected int <= 9007199254740991"),
    ("write", {}, "$.image_description: this field is required"),
    ("write", {"image_description": ""}, "$.image_description: expected at least 1 character"),
    ("write", {"image_description": "x" * 8001}, "$.image_description: expected at most 8000 characters"),
    ("write", {"image_description": True}, "$.image_description: expected str, got bool"),
    ("write", {**PRODUCT, "language": ""}, "$.language: expected at least 1 character"),
    ("write", {**PRODUCT, "language": "x" * 41}, "$.language: expected at most 40 characters"),
    ("write", {**PRODUCT, "categories": []}, "$.categories: expected at least 1 item"),
    ("write", {**PRODUCT, "categories": ["x"] * 101}, "$.categories: expected at most 100 items"),
    ("write", {**PRODUCT, "categories": "Home"}, "$.categories: expected array | null, got str"),
    ("write", {**PRODUCT, "categories": ["Home", 7]}, "$.categories[1]: expected str, got int"),
    ("write", {**PRODUCT, "categories": ["Home", ""]}, "$.categories[1]: expected at least 1 character"),
    ("write", {**PRODUCT, "categories": ["Home", "Home"]}, "$.categories: each category may appear only once"),
    ("write", {**PRODUCT, "stop": "."}, "$.stop: unknown field"),
    ("write", {**PRODUCT, "top_p": 0}, "$.top_p: expected float > 0.0"),
    ("write", {**PRODUCT, "system_prompt": ""}, "$.system_prompt: expected at least 1 character"),
    ("write", {**PRODUCT, "json_schema": []}, "$.json_schema: expected object | null, got array"),
    ("write", {**PRODUCT, "json_schema": {}}, "$.json_schema.type: expected one of object, array"),
    ("write", {**PRODUCT, "json_schema": SCHEMA, "categories": ["A"]}, "$.categories: has no place beside json_schema"),
    (
        "write",
        {**PRODUCT, "json_schema": {"type": "object", "properties": {"x": {"type": "string", "pattern": "a"}}}},
        "$.json_schema.properties.x.pattern: is not supported here; supported are objects",
    ),
    ("speak", {}, "$.text: this field is required"),
    ("speak", {"text": ""}, "$.text: expected at least 1 character"),
    ("speak", {"text": " \n\t"}, "$.text: expected words, got only white space"),
    ("speak", {"text": "…!?"}, "$.text: expected words, got nothing that can be said"),
    ("speak", {"text": "x" * 80_001}, "$.text: expected at most 80000 characters"),
    ("speak", {**SPEECH, "voice": ""}, "$.voice: expected at least 1 character"),
    ("speak", {**SPEECH, "voice": "nobody"}, "$.voice: unknown voice 'nobody'; there are: "),
    ("speak", {**SPEECH, "audio_prompt_url": "voice.wav"}, "$.audio_prompt_url: expected an http, https or data URL"),
    ("speak", {**SPEECH, "format": "aac"}, "$.format: expected one of "),
    ("speak", {**SPEECH, "format": 7}, "$.format: expected str, got int"),
    ("speak", {**SPEECH, "speed": 0.49}, "$.speed: expected float >= 0.5"),
    ("speak", {**SPEECH, "speed": 2.5}, "$.speed: expected float <= 2.0"),
    ("speak", {**SPEECH, "exaggeration": 3}, "$.exaggeration: expected float <= 2.0"),
    ("speak", {**SPEECH, "cfg_weight": -1}, "$.cfg_weight: expected float >= 0.0"),
    ("speak", {**SPEECH, "temperature": 0}, "$.temperature: expected float >= 0.05"),
    ("speak", {**SPEECH, "seed": 2**32}, "$.seed: expected int <= 4294967295"),
]

BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"webhook": ""}, "$.webhook: "),
    ({"webhook": "here"}, "$.webhook: "),
    ({"webhook": "ftp://example.com/"}, "$.webhook: "),
    ({"webhook": "data:text/plain,x"}, "$.webhook: "),
    ({"policy": {"ttl": 1}}, "$.policy.ttl: expected int >= 10000"),
]


@pytest.fixture(scope="module")
def config() -> Config:
    services = {
        name: ServiceConfig(name=name, handler=handler, device="cpu", load="first_use")
        for name, handler in HANDLERS.items()
    }
    return Config(server=ServerConfig(grace_s=0.0), profile="test", services=services)


@pytest.mark.parametrize(("service", "given", "error"), BAD_INPUT)
async def test_bad_input_is_refused_by_its_field(
    aiohttp_client: MakeClient, config: Config, service: str, given: dict[str, Any], error: str
) -> None:
    app = create_app(Registry(config))
    client = await aiohttp_client(app)
    for body in ({"input": given}, given) if given else ({"input": given},):
        shown = await read(await client.post(f"/v2/{service}/run", json=body), 400)
        assert shown["status"] == "FAILED"
        assert shown["error"].startswith(error)
        assert "\n" not in shown["error"]
    assert app[REGISTRY].get(service).state == "COLD"


@pytest.mark.parametrize(("beside", "error"), BAD_REQUESTS)
async def test_what_stands_beside_the_input_is_checked_as_well(
    aiohttp_client: MakeClient, config: Config, beside: dict[str, Any], error: str
) -> None:
    client = await aiohttp_client(create_app(Registry(config)))
    shown = await read(await client.post("/v2/speak/run", json={"input": SPEECH, **beside}), 400)
    assert shown["error"].startswith(error)
