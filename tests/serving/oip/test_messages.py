"""Our reading of gRPC's messages is the clients' own."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from marram.serving.oip.messages import CALLS, SERVICE, TYPES


@pytest.mark.parametrize("name", sorted(TYPES))
def test_fields_have_the_protocols_numbers_and_types(name: str) -> None:
    theirs = service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}")
    _same(TYPES[name].DESCRIPTOR, theirs)


def _same(ours: object, theirs: object) -> None:
    for field in ours.fields:  # type: ignore[attr-defined]
        other = theirs.fields_by_name[field.name]  # type: ignore[attr-defined]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
        if field.message_type is not None:
            assert field.message_type.full_name == other.message_type.full_name
            _same(field.message_type, other.message_type)
        if field.enum_type is not None:
            known = {value.name: value.number for value in other.enum_type.values}
            assert {value.name: value.number for value in field.enum_type.values}.items() <= known.items()


def test_every_call_is_the_services() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert theirs.full_name == SERVICE
    for name, call in CALLS.items():
        method = theirs.methods_by_name[name]
        assert call.request.DESCRIPTOR.full_name == method.input_type.full_name
        assert call.response.DESCRIPTOR.full_name == method.output_type.full_name
        assert call.streams == method.client_streaming == method.server_streaming
