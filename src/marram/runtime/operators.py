"""ONNX operators in NumPy, for the reference engine: `OPERATORS[name](attributes, *inputs)`; an absent input is None.

Written to be read beside the ONNX operator specification, not to be fast. Pure functions: inputs are never written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = Any  # NDArray of any dtype: NumPy's own types get lost in arithmetic on mixed ones
Attributes = dict[str, Any]


def conv(a: Attributes, x: Array, w: Array, bias: Array | None = None) -> Array:
    """x: (N, C, H, W), w: (M, C / group, kh, kw) -> (N, M, oh, ow)."""
    group = a.get("group", 1)
    windows = _windows(a, x, w.shape[2:], 0)  # (N, C, oh, ow, kh, kw)
    n, c, oh, ow, kh, kw = windows.shape
    m = w.shape[0]
    windows = windows.reshape(n, group, c // group, oh, ow, kh, kw)
    kernels = w.reshape(group, m // group, c // group, kh, kw)
    y = np.einsum("ngcyxij,gmcij->ngmyx", windows, kernels, optimize=True).reshape(n, m, oh, ow)
    return y if bias is None else y + bias[:, None, None]


def max_pool(a: Attributes, x: Array) -> Array:
    """x: (N, C, H, W) -> (N, C, oh, ow); padding counts as minus infinity."""
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    return _windows(a, x, a["kernel_shape"], lowest).max(axis=(4, 5))


def average_pool(a: Attributes, x: Array) -> Array:
    """Padding is left out of the mean, unless `count_include_pad`."""
    total = _windows(a, x, a["kernel_shape"], 0).sum(axis=(4, 5))
    if a.get("count_include_pad", 0):
        return total / np.float32(np.prod(a["kernel_shape"]))
    return total / _windows(a, np.ones_like(x), a["kernel_shape"], 0).sum(axis=(4, 5))


def gemm(a: Attributes, x: Array, w: Array, bias: Array | None = None) -> Array:
    """alpha × x' w' + beta × bias, x' and w' transposed where asked."""
    product = np.float32(a.get("alpha", 1.0)) * ((x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w))
    return product if bias is None else product + np.float32(a.get("beta", 1.0)) * bias


def batch_normalization(a: Attributes, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    """Per channel, axis 1."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    deviation = np.sqrt(variance + np.float32(a.get("epsilon", 1e-5)))
    return (x - mean.reshape(shape)) / deviation.reshape(shape) * scale.reshape(shape) + bias.reshape(shape)


def quantize_linear(a: Attributes, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    """saturate(round_half_even(x / scale) + zero_point); uint8 where there is no zero-point."""
    zero = np.zeros((), np.uint8) if zero_point is None else zero_point
    limits = np.iinfo(zero.dtype)
    steps = np.rint(x / _along(scale, a, x)) + _along(zero, a, x).astype(np.float32)
    return np.clip(steps, limits.min, limits.max).astype(zero.dtype)


def dequantize_linear(a: Attributes, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    """(x - zero_point) × scale."""
    real = x.astype(np.float32)
    if zero_point is not None:
        real = real - _along(zero_point, a, x).astype(np.float32)
    return real * _along(scale, a, x)


def softmax(a: Attributes, x: Array) -> Array:
    """Along `axis`, -1 where none is given."""
    axis = a.get("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def clip(a: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Bounds may be absent."""
    return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high).astype(x.dtype)


def reshape(a: Attributes, x: Array, shape: Array) -> Array:
    """0 keeps a length, -1 infers one."""
    return x.reshape([x.shape[i] if n == 0 and not a.get("allowzero") else int(n) for i, n in enumerate(shape)])


def flatten(a: Attributes, x: Array) -> Array:
    """To two dimensions, split at `axis`."""
    axis = a.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def reduce_mean(a: Attributes, x: Array, axes: Array | None = None) -> Array:
    """`axes` is an attribute before opset 18, an input since."""
    chosen = a.get("axes") if axes is None else axes.tolist()
    keep = bool(a.get("keepdims", 1))
    return x.mean(axis=None if chosen is None else tuple(chosen), keepdims=keep, dtype=x.dtype)


def squeeze(a: Attributes, x: Array, axes: Array | None = None) -> Array:
    """Drop lengths of 1: `axes`, or all."""
    return np.squeeze(x, axis=None if axes is None else tuple(int(n) for n in axes))


def unsqueeze(a: Attributes, x: Array, axes: Array) -> Array:
    """Put lengths of 1 at `axes`."""
    return np.expand_dims(x, tuple(int(n) for n in axes))


def pad(a: Attributes, x: Array, pads: Array, value: Array | None = None) -> Array:
    """Constant padding: the starts of all axes, then the ends."""
    half = len(pads) // 2
    widths = [(int(pads[i]), int(pads[i + half])) for i in range(half)]
    return np.pad(x, widths, constant_values=0 if value is None else value.item())


def constant(a: Attributes) -> Array:
    """The value it holds."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for name, dtype in kinds.items():
        if name in a:
            return np.array(a[name], dtype)
    return np.asarray(a["value"])


def _windows(a: Attributes, x: Array, kernel: tuple[int, ...], filler: float) -> Array:
    """What a kernel sees at each place: (N, C, oh, ow, kh, kw), padded with `filler`."""
    strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    (top, left), (bottom, right) = _pads(a, x.shape[2:], reach, strides)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=filler)
    every = sliding_window_view(padded, reach, axis=(2, 3))
    return every[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _pads(
    a: Attributes, size: tuple[int, ...], reach: list[int], strides: list[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    mode = a.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
        return (top, left), (bottom, right)
    if mode == "VALID":
        return (0, 0), (0, 0)
    total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
    less, more = (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _along(parameter: Array, a: Attributes, x: Array) -> Array:
    """A per-channel parameter shaped so that it lies along `axis` of x; a scalar as it is."""
    if parameter.ndim == 0 or parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[a.get("axis", 1)] = -1
    return parameter.reshape(shape)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Concat": lambda a, *x: np.concatenate(x, axis=a["axis"]),
    "Constant": constant,
    "Conv": conv,
    "DequantizeLinear": dequantize_linear,
    "Div": lambda a, x, y: x / y,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, x: x.mean(axis=(2, 3), keepdims=True, dtype=x.dtype),
    "Identity": lambda a, x: x,
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": max_pool,
    "Mul": lambda a, x, y: x * y,
    "Pad": pad,
    "QuantizeLinear": quantize_linear,
    "ReduceMean": reduce_mean,
    "Relu": lambda a, x: np.maximum(x, np.zeros((), x.dtype)),
    "Reshape": reshape,
    "Sigmoid": lambda a, x: 1 / (1 + np.exp(-x)),
    "Softmax": softmax,
    "Squeeze": squeeze,
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: np.tanh(x),
    "Transpose": lambda a, x: np.transpose(x, a.get("perm")),
    "Unsqueeze": unsqueeze,
}
