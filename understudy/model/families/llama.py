"""Llama (arXiv 2407.21783) and SmolLM2, and the canonical spelling of tensors."""

from understudy.model.families.family import Family, GgufNames

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    gguf=GgufNames(architecture="llama", has_interleaved_rows=True),
)
