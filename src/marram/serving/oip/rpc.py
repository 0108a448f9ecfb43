"""The protocol over gRPC: `inference.GRPCInferenceService`.

A message is bounded before it is unpacked and after. Every fault is a status code and one line; a fault within a stream
is an answer of that stream, which goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from marram.schema.errors import Invalid, MarramError, Missing
from marram.serving.oip import describe
from marram.serving.oip.exchange import (
    Asked,
    Given,
    check_here,
    check_wanted,
    no_loading,
    no_shared_memory,
    options_of,
    version_of,
)
from marram.serving.oip.faults import code_of, words
from marram.serving.oip.inference import Inference
from marram.serving.oip.messages import CALLS, SERVICE, TYPES
from marram.serving.oip.tensors import BYTES, NUMBERS, Named, check_shape, from_raw, to_raw

log = logging.getLogger(__name__)

MOST_MESSAGE_BYTES = 64_000_000
# Answered at a time, over all connections; more are refused at once.
_MOST_CALLS = 512
_FAILED = "the server failed at this; its log says more"
# Where numbers lie that are not sent as bytes. FP16 has no such field: it is always sent as bytes.
_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}

# Lets a call in by its metadata and the peer's address, or raises. `asks`: it is an inference, else it only looks.
Admit = Callable[[Mapping[str, str], str, bool], Awaitable[None]]

# What only watches over a server seldom has a token.
_OPEN = frozenset({"ServerLive", "ServerReady"})
_ASKING = frozenset({"ModelInfer", "ModelStreamInfer"})


def options() -> list[tuple[str, int]]:
    """Of a server that answers this service."""
    return [
        ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),  # a taken port is told, not shared with whoever has it
        ("grpc.max_concurrent_streams", _MOST_CALLS),
    ]


class Rpc:
    """See the module's words. `admit` None: everybody may, as where only this machine reaches it."""

    def __init__(self, inference: Inference, admit: Admit | None = None) -> None:
        self._inference = inference
        self._admit = admit

    def server(self) -> Any:
        """A server (`grpc.aio`) that answers by this, to be given its ports and started."""
        server = grpc.aio.server(options=options(), maximum_concurrent_rpcs=_MOST_CALLS)
        server.add_generic_rpc_handlers((self.handler(),))
        return server

    def handler(self) -> Any:
        """The service, for `grpc.aio.server.add_generic_rpc_handlers`."""
        handlers = {}
        for name, call in CALLS.items():
            how = {
                "request_deserializer": _reader(call.request),
                "response_serializer": call.response.SerializeToString,
            }
            if call.streams:
                handlers[name] = grpc.stream_stream_rpc_method_handler(self._stream, **how)
            elif self._admit is None or name in _OPEN:
                handlers[name] = grpc.unary_unary_rpc_method_handler(self._unary(name), **how)
            else:
                # On the wire a single message is a stream of one; only of a stream can the reading wait.
                handlers[name] = grpc.stream_stream_rpc_method_handler(self._behind_door(name), **how)
        return _Known(grpc.method_handlers_generic_handler(SERVICE, handlers))

    def _unary(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        answer, response = getattr(self, f"_{name}"), CALLS[name].response

        async def guarded(request: Any, context: Any) -> Any:
            try:
                given = await answer(_readable(request), context)
            except MarramError as error:
                await context.abort(getattr(grpc.StatusCode, code_of(error)), words(error))
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                log.exception("%s failed", name)
                await context.abort(grpc.StatusCode.INTERNAL, _FAILED)
            return json_format.ParseDict(given, response()) if isinstance(given, dict) else given

        return guarded

    def _behind_door(self, name: str) -> Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]:
        """The call for whom `admit` lets in: of a stranger's message nothing is read."""
        guarded = self._unary(name)

        async def behind(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            await self._let_in(context, name)
            async for request in requests:
                yield await guarded(request, context)
                return

        return behind

    async def _let_in(self, context: Any, name: str) -> None:
        if self._admit is None:
            return
        sent = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        try:
            await self._admit(sent, context.peer(), name in _ASKING)
        except MarramError as error:
            await context.abort(getattr(grpc.StatusCode, code_of(error)), words(error))
        except Exception:
            log.exception("%s: nobody could be let in", name)
            await context.abort(grpc.StatusCode.INTERNAL, _FAILED)

    # ------------------------------------------------------------ what only looks, named as the service names it

    async def _ServerLive(self, request: Any, context: Any) -> dict[str, Any]:
        return {"live": True}

    async def _ServerReady(self, request: Any, context: Any) -> dict[str, Any]:
        return {"ready": self._inference.ready()}

    async def _ModelReady(self, request: Any, context: Any) -> dict[str, Any]:
        return {"ready": self._inference.find(request.name, version_of(request.version)).ready}

    async def _ServerMetadata(self, request: Any, context: Any) -> dict[str, Any]:
        return describe.server()

    async def _ModelMetadata(self, request: Any, context: Any) -> dict[str, Any]:
        return describe.metadata(self._inference, request.name, version_of(request.version))

    async def _ModelConfig(self, request: Any, context: Any) -> dict[str, Any]:
        return {"config": describe.config(self._inference, request.name, version_of(request.version))}

    async def _ModelStatistics(self, request: Any, context: Any) -> dict[str, Any]:
        return describe.statistics(self._inference, request.name, version_of(request.version))

    async def _RepositoryIndex(self, request: Any, context: Any) -> dict[str, Any]:
        return {"models": describe.index(self._inference, only_ready=request.ready)}

    # ------------------------------------------------------------ inferences

    async def _ModelInfer(self, request: Any, context: Any) -> Any:
        return written(await self._inference.infer(read(request, context.time_remaining())))

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One answer for each request, in their order."""
        response = TYPES["ModelStreamInferResponse"]
        await self._let_in(context, "ModelStreamInfer")
        async for request in requests:
            try:
                yield response(infer_response=await self._ModelInfer(_readable(request), context))
            except MarramError as error:
                yield _failed(response, request, words(error))
            except Exception:
                log.exception("an inference of a stream failed")
                yield _failed(response, request, _FAILED)


def _failed(response: Any, request: Any, text: str) -> Any:
    """An answer of a stream that says what failed, and of which request."""
    said = "" if isinstance(request, Invalid) else request.id
    return response(error_message=text, infer_response=TYPES["ModelInferResponse"](id=said))


def _reader(message: Any) -> Callable[[bytes], Any]:
    """Reads a message. What is none becomes the fault that says so: gRPC would log a traceback, and tell no cause."""

    def reads(sent: bytes) -> Any:
        try:
            return message.FromString(sent)
        except DecodeError:
            return Invalid(f"not a {message.DESCRIPTOR.name}: {len(sent)} bytes that cannot be read")

    return reads


def _readable(request: Any) -> Any:
    if isinstance(request, Invalid):
        raise request
    return request


def read(request: Any, left_s: float | None) -> Asked:
    """What a ModelInferRequest asks. Raises Invalid."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Invalid(
            f"{len(request.inputs)} inputs, and {len(raw)} raw_input_contents",
            hint="Send every input as raw contents, or none.",
        )
    sent = []
    for index, entry in enumerate(request.inputs):
        name = entry.name
        shape = check_shape(name, entry.datatype, list(entry.shape))
        check_here(name, entry.parameters)
        if raw:
            if entry.HasField("contents"):
                raise Invalid("its contents are sent twice, raw and typed", where=f'tensor "{name}"')
            sent.append(from_raw(name, entry.datatype, shape, raw[index]))
        else:
            sent.append(_typed(name, entry.datatype, shape, entry.contents))
    wanted = [check_wanted(each.name, _plain(each.parameters)) for each in request.outputs]
    options, left_s = options_of(_plain(request.parameters), left_s)
    version = version_of(request.model_version)
    return Asked(request.model_name, version, tuple(sent), tuple(wanted), options, left_s, request.id)


def _typed(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Named:
    where, count, field = f'tensor "{name}"', math.prod(shape), _FIELDS.get(datatype)
    if field is None:
        raise Invalid(f"{datatype} is sent in raw_input_contents", where=where)
    values = getattr(contents, field)
    if len(values) != count:
        raise Invalid(f"its shape says {count} elements, {field} has {len(values)}", where=where)
    if datatype == BYTES:
        return Named(name, datatype, shape, list(values))
    dtype = NUMBERS[datatype]
    found = np.array(values)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        if found.min() < limits.min or found.max() > limits.max:
            raise Invalid(f"holds a number that is no {datatype}", where=where)
    return Named(name, datatype, shape, found.astype(dtype).reshape(shape))


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        plain[key] = None if chosen is None else getattr(value, chosen)
    return plain


def written(given: Given) -> Any:
    """The ModelInferResponse: every output raw, as the bytes that they are."""
    response = TYPES["ModelInferResponse"](model_name=given.model, model_version=str(given.version), id=given.id)
    for tensor in given.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(to_raw(tensor))
    return response


class _Known(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    """The service; what it does not offer of the protocol is refused in words, not only as a method nobody knows."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def service(self, details: Any) -> Any:
        """The handler of one call; None for another service's."""
        known = self._calls.service(details)
        if known is not None or not details.method.startswith(f"/{SERVICE}/"):
            return known
        said = words(_not_offered(details.method.rpartition("/")[2]))

        async def refuse(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, said)
            yield b""  # a stream, as the handler has to be

        return grpc.stream_stream_rpc_method_handler(refuse)


def _not_offered(call: str) -> MarramError:
    if "SharedMemory" in call:
        return no_shared_memory()
    if call.startswith("RepositoryModel"):
        return no_loading()
    return Missing(f"there is no call {call[:50]} here", hint=f"There are {', '.join(sorted(CALLS))}.")
