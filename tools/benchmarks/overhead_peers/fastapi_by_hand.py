"""FastAPI with the work in threads and jobs in a dictionary, as they are written by hand.

``python fastapi_by_hand.py PORT``. A job stays in the dictionary for good.
"""

import sys
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Body(BaseModel):
    """What a caller sends."""

    input: dict[str, Any]


app = FastAPI()
pool = ThreadPoolExecutor()
jobs: dict[str, Future[dict[str, Any]]] = {}


def work(given: dict[str, Any]) -> dict[str, Any]:
    """Give the text back."""
    return {"text": given["text"]}


@app.post("/runsync")
def runsync(body: Body) -> dict[str, Any]:
    """Do the work in a thread of Starlette's pool."""
    return {"status": "COMPLETED", "output": work(body.input)}


@app.post("/run")
async def run(body: Body) -> dict[str, Any]:
    """Leave the work to a thread."""
    job_id = uuid.uuid4().hex
    jobs[job_id] = pool.submit(work, body.input)
    return {"id": job_id, "status": "IN_PROGRESS"}


@app.get("/status/{job_id}")
async def status(job_id: str) -> dict[str, Any]:
    """Tell how far the work is."""
    job = jobs.get(job_id)
    if job is None:
        raise HTTPException(404)
    if not job.done():
        return {"id": job_id, "status": "IN_PROGRESS"}
    return {"id": job_id, "status": "COMPLETED", "output": job.result()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
