"""The router: the public face of the platform, SLM first, LLM when it must.

Owns the policy, grammars of requests, calibrators in use, API keys, admission and the journal.
Serves `RouterService` over gRPC and an OpenAI-compatible HTTP edge beside it. Calls attention
workers (one `Session` stream each), engines of external pools over HTTP, the control Redis
(journal) and, while requests wait for a pool without workers, the controller, which wakes it.

When an attention worker dies, its sequences continue elsewhere from their committed tokens; an
external engine is asked again only while nothing of its answer was shown. When the SLM pool is
away, the LLM answers and the decision says so. When the LLM pool is away, requests that need it
wait a while, then are refused as UNAVAILABLE; when it sleeps, they are held while it wakes, or
refused with the time that takes. When the controller is away, nothing is woken. When the control
Redis is away, serving continues, resume is off and says so. When the router dies, SDK callers
resume on another replica.
"""
