"""LitServe: its batching (`max_batch_size`, `batch_timeout`), its fast queue, a worker for each core.

So its documentation has it for CPUs and for hundreds of requests a second.
"""

# No `from __future__ import annotations`: LitServe reads the type of `request` to know what to hand over.
from typing import Annotated, Any

import litserve
from fastapi import Body

from bench.peers._classifier import Answer, Classifier, Picture, decode, port


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request: Annotated[bytes, Body()]) -> Picture:
        return decode(request)

    def batch(self, inputs: list[Picture]) -> list[Picture]:
        return inputs

    def predict(self, inputs: list[Picture]) -> list[Answer]:
        return self.classifier.run(inputs)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Any:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Classify(max_batch_size=4, batch_timeout=0.001, api_path="/classify"),
        accelerator="cpu",
        devices=1,
        workers_per_device=2,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=port(), log_level="warning", generate_client_file=False)
