"""The distiller: makes the student, its calibrator and the teacher's adapter.

Owns training runs and their checkpoints. Calls nothing while it trains; a run that dies resumes
from its newest checkpoint to the same loss. `python -m services.distiller.recipe` reproduces the
shipped weights.
"""
