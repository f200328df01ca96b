"""The expert worker: feed-forward shards of a layer range, computed for any attention worker.

Owns the weights of (layer range, FFN shards or experts) and nothing about requests: every frame is
answered from the frame alone, so a retry on another worker gives the same sum. Attention workers
call it; it calls nobody. When it dies, attention workers send its unanswered frames to a replica.
When the trace collector dies, spans are lost and nothing else.
"""
