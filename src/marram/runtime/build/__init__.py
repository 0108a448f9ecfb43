"""Making models: bundles from public weights, quantisation. Only the cloud's and a developer's machine do this."""

from __future__ import annotations

# What `marram model build NAME` can make, and one line on each.
BUILDABLE: dict[str, str] = {
    "efficientnet-lite0": "ImageNet classifier, 224 px, 4.7 M parameters: the device's",
    "efficientnet-lite2": "ImageNet classifier, 260 px, 6.1 M parameters: surer, slower",
    "blazeface": "face detector, 128 px: what `redact: faces` uses",
}
