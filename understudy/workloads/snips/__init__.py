"""SNIPS: 13,784 crowd-sourced voice-assistant utterances over seven tools (CC0 1.0).

Coucke et al., "Snips Voice Platform", arXiv 1805.10190; see DATA.md beside this file.
"""
