"""Text to token ids and back: tokenizer, chat template, streaming detokeniser.

Torch-free, because the router imports it. Weights live in `understudy.model`.
"""
