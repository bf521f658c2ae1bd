"""The local server of RunPod's SDK with a no-op handler: ``python runpod_local.py --rp_serve_api``."""

from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Give the text back."""
    return {"text": job["input"]["text"]}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
