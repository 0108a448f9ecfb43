"""Ray Serve: a replica for each core, `serve.batch` in each."""

from __future__ import annotations

import asyncio
import signal

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from bench.peers._classifier import Answer, Classifier, port


class Classify:
    """One replica."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.001)
    async def answer(self, jpegs: list[bytes]) -> list[Answer]:
        return await asyncio.to_thread(self.classifier.answer, jpegs)

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.answer(await request.body()))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": port()})
    deployed = serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=32)(Classify)
    serve.run(deployed.bind(), route_prefix="/classify")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
