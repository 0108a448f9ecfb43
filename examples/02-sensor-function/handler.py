"""What a pump's vibration says, in a handler written for AWS IoT Greengrass V1: nothing in it knows of Marram.

`function_handler` is called for each window of 256 samples. It publishes what it found on `sensor/data`
and returns it.
"""

import json
import logging
from pathlib import Path

import greengrasssdk
import torch

STATES = ("normal", "imbalance", "bearing")
WINDOW = 256

logger = logging.getLogger(__name__)
client = greengrasssdk.client("iot-data")
torch.set_num_threads(1)
# An exported program, made by make_model.py: the network and its weights in one file.
model = torch.export.load(Path(__file__).with_name("model.pt2")).module()


def function_handler(event, context):
    """`event["vibration"]`: 256 samples, m/s², at 1 kHz."""
    samples = torch.tensor(event["vibration"], dtype=torch.float32)
    if samples.shape != (WINDOW,):
        raise ValueError(f"a window has {WINDOW} samples, got {list(samples.shape)}")
    with torch.no_grad():
        chances = torch.softmax(model(samples.reshape(1, 1, WINDOW)), dim=1)[0]  # (states)
    best = int(chances.argmax())
    found = {"state": STATES[best], "confidence": round(float(chances[best]), 4), "rms": round(float(samples.std()), 4)}
    client.publish(topic="sensor/data", payload=json.dumps(found), queueFullPolicy="AllOrException")
    if best:
        logger.info("%s: %s", context.client_context.custom["subject"], found)
    return {"label": found["state"], "confidence": found["confidence"], "rms": found["rms"]}
