"""FastAPI, which has no batching: one process, and a thread for each core that decodes and infers.

Engine and decoder release the GIL, so threads serve as well as more processes would, with the model in memory once.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from bench.peers._classifier import Classifier, port

app = FastAPI()
classifier = Classifier()
cores = ThreadPoolExecutor(2)


@app.post("/classify")
async def classify(request: Request) -> JSONResponse:
    """A JPEG as it is; the five likeliest classes."""
    jpeg = await request.body()
    (answer,) = await asyncio.get_running_loop().run_in_executor(cores, classifier.answer, [jpeg])
    return JSONResponse(answer)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port(), loop="uvloop", http="httptools", access_log=False)
