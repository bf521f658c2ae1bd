from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from aiservices.errors import ConfigError, UnknownService
from aiservices.handler import BatchHandler, Task
from aiservices.jobs import JobRequest
from aiservices.model import ServiceState
from aiservices.registry import Registry, load_handler
from aiservices.settings import Config, ServiceConfig
from tests.fakes import TextInput, TextOutput, Upper


@attrs.frozen
class ActionInput:
    """Has a name that a warm-up has taken."""

    action: str


@attrs.frozen
class ServiceInput:
    """Has a name that RunPod's workers have taken."""

    text: str
    service: str = ""


class NotAttrs:
    """Any class."""


class Answers:
    """Answers with what it was asked; what an author may forget is beside it."""

    def predict(self, tasks: Sequence[Task[Any]]) -> Sequence[Any]:
        return [task.item for task in tasks]


class NoTypes(Answers, BatchHandler):  # type: ignore[type-arg]
    """Lacks its type parameters."""


class NotAttrsInput(Answers, BatchHandler[NotAttrs, TextOutput]):
    """Takes what is no attrs class."""


class NotAttrsOutput(Answers, BatchHandler[TextInput, NotAttrs]):
    """Gives what is no attrs class."""


class StepsWithDict(Answers, BatchHandler[TextInput, dict[str, str]]):
    """Gives what is not even a class."""


class TakesAction(Answers, BatchHandler[ActionInput, TextOutput]):
    """Has an input field that cannot be sent."""


class TakesService(Answers, BatchHandler[ServiceInput, TextOutput]):
    """Has an input field that cannot be sent everywhere."""


class NoPredict(BatchHandler[TextInput, TextOutput]):
    """Lacks its predict."""


class Nested(Upper):
    """Has the type parameters of its base."""


def named(handler: str, name: str = "shout") -> ServiceConfig:
    return ServiceConfig(name=name, handler=handler, device="cpu", batch_wait_s=0)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("no_such_module:Thing", "[services.shout] handler: cannot import 'no_such_module': No module named"),
        ("tests.fakes:Uper", "module 'tests.fakes' has no 'Uper'; did you mean 'Upper'?"),
        ("tests.fakes:TextInput", "is not a BatchHandler or a StepHandler"),
        ("tests.test_registry:NoPredict", "lacks one of its methods"),
        ("tests.test_registry:NoTypes", "NoTypes: type parameter 1, its Input, has to be an attrs class"),
        ("tests.test_registry:NotAttrsInput", "NotAttrsInput: type parameter 1, its Input, has to be an attrs class"),
        ("tests.test_registry:NotAttrsOutput", "NotAttrsOutput: type parameter 2, its Output, has to be an attrs"),
        ("tests.test_registry:StepsWithDict", "StepsWithDict: type parameter 2, its Output, has to be an attrs"),
        (
            "tests.test_registry:TakesAction",
            'the input field \'action\' would be taken for a warm-up, {"action": "warmup"}; rename it',
        ),
        (
            "tests.test_registry:TakesService",
            "the input field 'service' would be taken for the choice of a service, which RunPod's workers make by it;",
        ),
    ],
)
def test_a_handler_that_cannot_serve_is_named_with_the_reason(handler: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_handler(named(handler))
    assert message in str(caught.value)
    assert str(caught.value).startswith("[services.shout] handler: ")


def test_a_handler_may_leave_its_types_to_its_base() -> None:
    handler = load_handler(named("tests.test_registry:Nested"))
    assert (handler.Input, handler.Output) == (TextInput, TextOutput)


async def test_a_registry_is_not_made_of_a_handler_that_cannot_serve() -> None:
    with pytest.raises(ConfigError, match="'action' would be taken for a warm-up"):
        Registry(Config(services={"shout": named("tests.test_registry:TakesAction")}))


async def test_a_registry_is_not_made_with_an_option_that_a_handler_does_not_know() -> None:
    echo = attrs.evolve(named("aiservices.handlers.echo:Echo", "echo"), options={"item_s": "long"})
    with pytest.raises(ConfigError, match=r"^\[services\.echo\] options\.item_s: Expected `float`, got `str`$"):
        Registry(Config(services={"echo": echo}))


async def test_services_start_answer_drain_and_close_together() -> None:
    services = {"upper": named("tests.fakes:Upper", "upper"), "count": named("tests.fakes:Counting", "count")}
    registry = Registry(Config(services=services, profile="test"))
    await registry.start()
    jobs = {service.name: service.submit(JobRequest(input={"text": "a"})) for service in registry.services.values()}
    for job in jobs.values():
        await job.wait_end(10)
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
