"""The container images: what goes into each of them, how they are built, what is checked.

Nothing here needs a container engine except `build`.
"""
