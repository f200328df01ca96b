"""Compiled kernels: one op per file with its plain-torch reference, and their packaging.

Imports torch and `understudy.errors` only; weights come in as tensors from whoever calls.
"""
