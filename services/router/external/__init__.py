"""Pools behind OpenAI-compatible engines: vLLM, SGLang, NIM, or another Understudy.

An engine speaks messages and text where a native worker speaks tokens. What the router needs of
one URL is the port `Endpoint`; `clients.openai` is its only speaker of HTTP. Its invariants:

1. `ask` yields what was heard in order and ends only after the engine said why it finished;
   anything else raises a named error: the engine's 400 as EngineRefused, its 401, 403 and 404 as
   EngineMisfit, its 429 as ResourceExhausted with the time to come back at, and everything that
   another try may cure (5xx, no connection, silence, a cut or garbled stream) as Unavailable.
2. Closing the iteration closes the connection to the engine at once, so that it stops computing.
3. An endpoint tries once. Trying again is the attempt's (`runs`), and only while nothing of the
   answer was shown: no engine can continue from a token, so an answer that was partly shown ends
   as Aborted, which says so. One request is tried a few times at each endpoint and counts there
   as one failure, so that a request which breaks an engine does not close the pool to others.
4. Lines, events, whole streams and error bodies are bounded; keys, prompts and answers are never
   logged.
5. What an engine did not say is never made up: it is a `Gap` of the attempt.
"""
