"""Discrete-event simulation of a pool of attention workers under a request trace.

Workers are modelled by the costs that this repository's engine shows (`capacity.py`), policies
size the pool at ticks, and both see nothing but what the real ones see: metrics of a window.
"""
