"""The attention worker: owns sequences, the scheduler, paged KV, sampling and grammar masks.

It serves routers over one `Session` stream each and calls, by setting, the kvstore (longer
prefixes) and expert workers (feed-forwards of a disaggregated model, placed by the controller).

When the kvstore dies, prompts are recomputed and nothing else changes. When an expert worker dies,
the same part of the step goes to a replica; when none is left, health turns NOT_SERVING and, unless
one comes back in time, the sequences of that step end with ABORTED and the router places them
elsewhere; deadlines and cancels are heard meanwhile. When the controller dies, the last placement
stays. When a router dies, its stream ends and the blocks of its sequences are free within one step.
When the engine thread itself dies, health turns NOT_SERVING and every sequence ends with ABORTED.
"""
