"""Tests of real processes; a package, so that what they share ends with them."""
