"""The kvstore: KV chunks in host memory, Redis (or Valkey) behind it.

Owns cached bytes and nothing that cannot be computed again; runs beside attention workers and
outlives their restarts. Attention workers call it; it calls Redis. When Redis dies, slows down or
returns damaged bytes, chunks are missed and a breaker keeps it from being asked for a while; when
the kvstore dies, attention workers recompute. A miss is an answer, never an error.
"""
