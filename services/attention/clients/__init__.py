"""Stubs of the services that an attention worker calls."""

from services.attention.clients.experts import RemoteExperts
from services.attention.clients.kvstore import KvStoreClient

__all__ = ["KvStoreClient", "RemoteExperts"]
