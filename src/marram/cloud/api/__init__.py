"""The HTTP API: joining, devices, blobs, models, deployments, events, samples. `create_app(state)` builds it."""

from marram.cloud.api.app import create_app

__all__ = ["create_app"]
