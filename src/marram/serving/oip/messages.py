"""gRPC's messages, made from `open_inference.proto` at import, in a pool of their own.

Generated code is tied to the versions of protobuf that it was made with and for; descriptors are not. The pool is our
own because a program may hold another definition of the same names (a client of the protocol, for one), and protobuf's
common pool takes only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_FIELD, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}
_TOKEN = re.compile(r'//[^\n]*|\s+|("[^"]*"|[A-Za-z_][\w.]*|\d+|[{}<>()=;,])')


@dataclass(slots=True)
class Call:
    """One method of the service."""

    name: str
    request: Any
    response: Any
    streams: bool = False


@dataclass(slots=True)
class _Method:
    name: str
    request: str
    response: str
    streams: bool


@dataclass(slots=True)
class _Read:
    """What the file says, as far as it is used here: messages, enumerations, one service."""

    tokens: Iterator[str]
    file: Any = field(
        default_factory=lambda: descriptor_pb2.FileDescriptorProto(name="marram/open_inference.proto", syntax="proto3")
    )
    service: str = ""
    methods: list[_Method] = field(default_factory=list)

    def all(self) -> None:
        for token in self.tokens:
            match token:
                case "syntax":
                    self._skip(3)
                case "package":
                    self.file.package = next(self.tokens)
                    self._skip(1)
                case "message":
                    self._message(self.file.message_type.add())
                case "enum":
                    self._enum(self.file.enum_type.add())
                case "service":
                    self._service()
                case _:
                    raise ValueError(f"{token!r} is nothing that is read here")

    def _message(self, message: Any) -> None:
        message.name = next(self.tokens)
        self._skip(1)
        for token in self.tokens:
            if token == "}":
                return
            if token == "message":
                self._message(message.nested_type.add())
            elif token == "oneof":
                message.oneof_decl.add(name=next(self.tokens))
                self._skip(1)
                while (kind := next(self.tokens)) != "}":
                    self._field(message, kind).oneof_index = len(message.oneof_decl) - 1
            elif token == "map":
                self._map(message)
            elif token == "repeated":
                self._field(message, next(self.tokens)).label = _FIELD.LABEL_REPEATED
            else:
                self._field(message, token)

    def _field(self, message: Any, kind: str) -> Any:
        name, _, number, _ = (next(self.tokens) for _ in range(4))
        made = message.field.add(name=name, number=int(number), label=_FIELD.LABEL_OPTIONAL)
        if kind in _SCALARS:
            made.type = _SCALARS[kind]
        else:
            made.type_name = kind  # a message or an enumeration: the pool finds which, by its name
        return made

    def _map(self, message: Any) -> None:
        """`map<K, V> name = 1;` is a repeated message of key and value."""
        _, key, _, value, _ = (next(self.tokens) for _ in range(5))
        made = self._field(message, "ParametersEntry")
        made.label = _FIELD.LABEL_REPEATED
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_SCALARS[key])
        entry.field.add(name="value", number=2, label=_FIELD.LABEL_OPTIONAL, type_name=value)

    def _enum(self, enum: Any) -> None:
        enum.name = next(self.tokens)
        self._skip(1)
        while (name := next(self.tokens)) != "}":
            _, number, _ = (next(self.tokens) for _ in range(3))
            enum.value.add(name=name, number=int(number))

    def _service(self) -> None:
        self.service = f"{self.file.package}.{next(self.tokens)}"
        self._skip(1)
        while next(self.tokens) == "rpc":
            words = []
            while (token := next(self.tokens)) != ";":
                words.append(token)
            names = [word for word in words if word not in ("(", ")", "returns", "stream")]
            self.methods.append(_Method(names[0], names[1], names[2], "stream" in words))

    def _skip(self, count: int) -> None:
        for _ in range(count):
            next(self.tokens)


def _made() -> tuple[str, dict[str, Call], dict[str, Any]]:
    text = (files(__package__) / "open_inference.proto").read_text(encoding="utf-8")
    read = _Read(found[1] for found in _TOKEN.finditer(text) if found[1])
    read.all()
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(read.file.SerializeToString())
    types = {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{read.file.package}.{message.name}"))
        for message in read.file.message_type
    }
    calls = {
        each.name: Call(each.name, types[each.request], types[each.response], each.streams) for each in read.methods
    }
    return read.service, calls, types


# The service's full name, its calls by name, and every message's class by name.
SERVICE, CALLS, TYPES = _made()
