"""The controller: who holds which experts, and how many workers each pool gets.

Owns the placement of every pool with expert workers: asks each expert worker what it holds and
whether it is healthy, and publishes a newer table whenever the answer changes; attention workers
watch it. Owns the sizes of the pools that its scaling rules name: reads metrics, decides
(`scaling`), acts on the scale subresource while it holds the lease, explains every decision.

When it dies workers keep their last table and pools their size. Expert workers that die leave the
table; pods that cannot be read hold their pool's size; while the API server is away nothing is
changed and the lease is lost.
"""
