"""NVIDIA's Triton through pytriton: its dynamic batching, an instance for each core, JPEGs as BYTES tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers._classifier import TOP, Classifier, port


class Classify:
    """One instance."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @batch
    def __call__(self, image: NDArray[np.object_]) -> dict[str, NDArray[np.generic]]:
        answers = self.classifier.answer([row[0] for row in image])  # (N, 1)
        return {
            "labels": np.array([[label.encode() for label in answer["labels"]] for answer in answers], np.bytes_),
            "scores": np.array([answer["scores"] for answer in answers], np.float32),
        }


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port(), http_thread_count=2, allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            "classify",
            [Classify(), Classify()],
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[
                Tensor(name="labels", dtype=np.bytes_, shape=(TOP,)),
                Tensor(name="scores", dtype=np.float32, shape=(TOP,)),
            ],
            config=ModelConfig(max_batch_size=4, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
