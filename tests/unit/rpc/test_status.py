"""Errors <-> google.rpc.Status without a wire."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from understudy import errors
from understudy.rpc import error_from_proto, error_to_proto, from_rpc_error


@pytest.mark.parametrize("error_class", errors.REASONS.values(), ids=lambda c: c.__name__)
def test_every_class_survives_the_round_trip(error_class):
    error = error_class("It happened.", {"model": "slm"})

    again = error_from_proto(error_to_proto(error))

    assert type(again) is error_class
    assert again.message == "It happened."
    assert dict(again.metadata) == dict(error.metadata)


@given(
    st.text(max_size=3000),
    st.dictionaries(st.text(max_size=400), st.text(max_size=600), max_size=12),
)
def test_any_error_fits_trailing_metadata(message, metadata):
    status = error_to_proto(errors.InvalidArgument(message, {"field": "messages", **metadata}))

    assert message.encode("utf-8", "replace").startswith(status.message.encode())
    encoded = len(status.SerializeToString()) * 4 / 3 + 3 * len(status.message.encode())
    assert encoded < 7 * 1024


def test_request_id_survives_crowded_metadata():
    crowd = {f"key{number}": "x" * 256 for number in range(40)}
    error = errors.Aborted("Lost.", {**crowd, "request_id": "req-1"})

    assert error_from_proto(error_to_proto(error)).request_id == "req-1"


def test_reason_from_a_newer_peer_falls_back_to_the_class_of_its_code():
    info = error_details_pb2.ErrorInfo(reason="BRAND_NEW", domain=errors.DOMAIN)
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="Wait.", details=[detail])

    error = error_from_proto(status)

    assert type(error) is errors.Unavailable
    assert error.metadata["reason"] == "BRAND_NEW"


def test_foreign_error_info_is_mapped_by_code_alone():
    info = error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="elsewhere.example")
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code_pb2.ABORTED, message="Lost.", details=[detail])

    assert type(error_from_proto(status)) is errors.Aborted


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (code_pb2.OUT_OF_RANGE, errors.InvalidArgument),
        (code_pb2.UNIMPLEMENTED, errors.InvalidArgument),
        (code_pb2.PERMISSION_DENIED, errors.Unauthenticated),
        (code_pb2.DATA_LOSS, errors.Internal),
        (999, errors.Internal),
    ],
)
def test_status_without_details_is_mapped_by_code(code, expected):
    assert type(error_from_proto(status_pb2.Status(code=code, message="?"))) is expected


def test_damaged_details_do_not_hide_the_failure():
    damaged = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="Gone.", details=[damaged])

    assert type(error_from_proto(status)) is errors.NotFound


class FailedCall(grpc.RpcError):
    """A failed call as grpcio presents it."""

    def __init__(self, code, details, trailing):
        self._values = (code, details, trailing)

    def code(self):
        return self._values[0]

    def details(self):
        return self._values[1]

    def trailing_metadata(self):
        return self._values[2]


def test_damaged_status_metadata_falls_back_to_the_code():
    trailing = (("grpc-status-details-bin", b"\xff\xff"), ("x-request-id", "req-1"))
    call = FailedCall(grpc.StatusCode.UNAVAILABLE, "away", trailing)

    failure = from_rpc_error(call)

    assert type(failure) is errors.Unavailable
    assert failure.request_id == "req-1"


def test_failure_without_trailing_metadata_keeps_code_and_message():
    failure = from_rpc_error(FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED, None, None))

    assert type(failure) is errors.DeadlineExceeded
    assert failure.request_id is None


def test_failure_without_a_status_is_internal():
    assert type(from_rpc_error(grpc.RpcError("odd"))) is errors.Internal
