from __future__ import annotations

import attrs
import pytest

from aiservices.errors import ConfigError, UnknownService
from aiservices.handler import BatchHandler
from aiservices.jobs import JobRequest
from aiservices.registry import Registry, load_handler
from aiservices.service import ServiceState
from aiservices.settings import Config, ServiceConfig


class NoOutput(BatchHandler):  # type: ignore[type-arg]  # what an author may forget
    """Lacks its Output."""

    Input = attrs.make_class("Input", [])

    def predict(self, tasks):  # type: ignore[no-untyped-def]
        return tasks


class NoPredict(BatchHandler):  # type: ignore[type-arg]
    """Lacks its predict."""


def named(handler: str, name: str = "shout") -> ServiceConfig:
    return ServiceConfig(name=name, handler=handler, device="cpu", batch_wait_s=0)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("no_such_module:Thing", "[services.shout] handler: cannot import 'no_such_module': No module named"),
        ("tests.fakes:Uper", "module 'tests.fakes' has no 'Uper'; did you mean 'Upper'?"),
        ("tests.fakes:TextInput", "is not a BatchHandler or a StepHandler"),
        ("tests.test_registry:NoPredict", "lacks one of its methods"),
        ("tests.test_registry:NoOutput", "NoOutput.Output has to be an attrs class"),
    ],
)
def test_a_handler_that_cannot_serve_is_named_with_the_reason(handler: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_handler(named(handler))
    assert message in str(caught.value)


async def test_services_start_answer_drain_and_close_together() -> None:
    services = {"upper": named("tests.fakes:Upper", "upper"), "count": named("tests.fakes:Counting", "count")}
    registry = Registry(Config(services=services, profile="test"))
    await registry.start()
    jobs = {name: service.submit(JobRequest(input={"text": "a"})) for name, service in registry.services.items()}
    for name, job in jobs.items():
        await registry.get(name).wait(job, 10)
        assert job.status == "COMPLETED"
    await registry.drain(1)
    await registry.close()
    assert {service.state for service in registry.services.values()} == {ServiceState.STOPPED}


async def test_an_unknown_service_is_told_with_those_there_are() -> None:
    registry = Registry(Config(services={"upper": named("tests.fakes:Upper", "upper")}))
    with pytest.raises(UnknownService, match="no service named 'uper'; there are: upper"):
        registry.get("uper")
    await registry.close()


async def test_a_registry_that_never_started_closes() -> None:
    registry = Registry(Config(services={"upper": named("tests.fakes:Upper", "upper")}))
    await registry.close()
