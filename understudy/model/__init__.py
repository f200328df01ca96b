"""Plain-torch language models: config, weights, forward pass, sampling. No network, no services.

One `Transformer` with two seams, `AttentionContext` and `Experts`, so that the same forward runs
packed (training), paged (serving), fused or disaggregated. Import from the submodules; this file
stays empty so that reading a config does not load torch.
"""
