"""Brings the weights of models into a volume and proves that they are the ones that were meant.

`python -m understudy.weights fetch` is a Job: it reads files from `s3`, `gs`, `oci`, `hub` or a
mounted claim (`file`), resumes what was cut off, checks every file's sha256 and publishes a model's
folder whole or not at all, under a name that its content decides. `wait` holds a worker back until
its folders are there; `sums` prints what a folder holds, for the values that name it; `begin`,
`step` and `adopt` publish in the same way what other programs make. Nothing is fetched that has no
digest, and nothing is listed: what a source holds is said by the sums.
"""
