"""What the author of a handler is told whose class cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from aiservices.errors import ConfigError
from aiservices.handler import BatchHandler, Task
from aiservices.registry import load_handler
from aiservices.settings import ServiceConfig
from tests.fakes import TextInput, TextOutput
from tests.running import ask, ended, running

HEAD = """
import attrs
from aiservices import BatchHandler, StepHandler

@attrs.frozen
class In:
    text: str

@attrs.frozen
class Out:
    text: str
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Mine(BatchHandler[In, Out, Out]):\n    pass", r"TypeError: Too many .* \(MODULE\.py, line 13\)$"),
        ("import no_such_package", r"No module named 'no_such_package' \(MODULE\.py, line 13\)$"),
        ("class Mine:\npass", r"IndentationError: .* \(MODULE\.py, line 14\)$"),
        ("raise KeyError('A_VARIABLE')", r"KeyError: 'A_VARIABLE' \(MODULE\.py, line 13\)$"),
        ("class Other(BatchHandler[In, Out]):\n    def predict(self, tasks): ...", "has no 'Mine'; there are: Other$"),
        ("Other = In", "has no 'Mine', and no other handler$"),
        (
            "class Mine(StepHandler[In, Out]):\n    def step(self): ...",
            "lacks one of its methods: admit, evict, reset$",
        ),
        ("Mine = In", "is not a BatchHandler or a StepHandler$"),
        (
            "class Mine(BatchHandler):\n    def predict(self, tasks): ...",
            r"parameter 1, its Input, has to be an attrs class; as in class Mine\(BatchHandler\[Input, Output\]\)$",
        ),
        (
            "class Mine(BatchHandler[In, int]):\n    def predict(self, tasks): ...",
            "type parameter 2, its Output, has to be an attrs class, not int$",
        ),
        (
            "class Mine(BatchHandler[In, Out]):\n    def __init__(self, size): ...\n    def predict(self, tasks): ...",
            r"cannot be built: .*missing 1 required positional argument: 'size'",
        ),
    ],
    ids=[
        "a parameter too many",
        "an import that is missing",
        "no Python",
        "raises when imported",
        "another class",
        "no class",
        "methods missing",
        "no handler",
        "no type parameters",
        "no attrs class",
        "constructor with arguments",
    ],
)
def test_a_class_that_cannot_serve_is_refused_with_the_reason(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    module = "".join(filter(str.isalpha, request.node.name))  # Python imports a name once
    (tmp_path / f"{module}.py").write_text(HEAD + "\n" + source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message.replace("MODULE", module)):
        load_handler(ServiceConfig(name="mine", handler=f"{module}:Mine"))


def test_a_module_that_is_not_found_is_told_where_one_is_looked_for() -> None:
    with pytest.raises(ConfigError, match="No module named 'my_shop'; a module of your own lies beside the settings"):
        load_handler(ServiceConfig(name="mine", handler="my_shop:Mine"))


class Careless(BatchHandler[TextInput, TextOutput]):
    """Returns whatever it is made with."""

    def __init__(self, returned: Any) -> None:
        self._returned = returned

    def predict(self, tasks: Sequence[Task[TextInput]]) -> Any:
        return self._returned


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ([], "predict returned 0 results for a batch of 1"),
        (None, "predict has to return a list with one result for each task, and returned NoneType"),
        (iter([]), "predict has to return a list with one result for each task, and returned list_iterator"),
    ],
)
async def test_the_log_says_that_predict_returned_something_else(returned: Any, reason: str) -> None:
    async with running(Careless(returned)) as service:
        with structlog.testing.capture_logs() as events:
            assert await ended(service, ask(service, "one")) == ["FAILED"]
    assert [str(event["exc_info"]) for event in events if event["event"] == "job.failed_unexpectedly"] == [reason]
