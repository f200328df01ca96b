"""Fakes that ship: for the platform's own tests and for the tests of those who call it."""

from understudy.testing.answers import FakeAnswer
from understudy.testing.fake_router import FakeRouter, ReceivedCall

__all__ = ["FakeAnswer", "FakeRouter", "ReceivedCall"]
