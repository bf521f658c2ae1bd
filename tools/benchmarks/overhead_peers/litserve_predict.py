"""LitServe with a no-op model and its default workers: ``python litserve_predict.py PORT``."""

import sys
from typing import Any

import litserve


class EchoAPI(litserve.LitAPI):
    """Gives the text back."""

    def setup(self, device: str) -> None:
        """There is no model."""

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the text back."""
        return {"text": request["input"]["text"]}


if __name__ == "__main__":
    server = litserve.LitServer(EchoAPI(), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning", access_log=False
    )
