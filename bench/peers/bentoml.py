"""BentoML: adaptive batching (`batchable`), a worker process for each core.

A `batchable` method takes and gives lists, in JSON: each request brings a list of one JPEG, in base64.
"""

from __future__ import annotations

import base64

import bentoml

from bench.peers._classifier import Answer, Classifier


@bentoml.service(name="classify", workers=2, traffic={"timeout": 30, "max_concurrency": 256})
class Classify:
    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=4, max_latency_ms=10_000)
    def classify(self, jpegs: list[str]) -> list[Answer]:
        return self.classifier.answer([base64.b64decode(jpeg) for jpeg in jpegs])
