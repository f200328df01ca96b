"""Connections of the router: attention workers, and the controller."""
