"""A BentoML service with a no-op method, called at once and as a task: ``bentoml serve bentoml_service:Echo``."""

from typing import Any

import bentoml


@bentoml.service(logging={"access": {"enabled": False}})
class Echo:
    """Gives the text back."""

    @bentoml.api
    def echo(self, input: dict[str, Any]) -> dict[str, Any]:
        """Give the text back."""
        return {"text": input["text"]}

    @bentoml.task
    def echo_task(self, input: dict[str, Any]) -> dict[str, Any]:
        """Give the text back."""
        return {"text": input["text"]}
