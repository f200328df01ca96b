"""The OpenAI-compatible edge: `/health`, `/v1/models`, `/v1/chat/completions`, `/v1/completions`.

Unknown body keys are ignored, usage is exact, `x-request-id` is echoed. What the router decided is
in `x-understudy-*` headers, or in the last usage chunk of a stream, never in content.
"""
