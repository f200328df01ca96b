"""The controller: who holds which experts, published as a table with an epoch.

Owns the placement of every pool with expert workers. Asks each expert worker what it holds and
whether it is healthy, and publishes a newer table whenever the answer changes. Attention workers
watch it. When it dies they keep their last table; when expert workers die they leave the table.
In this version replicas are listed in the settings; counts and scaling are not its business yet.
"""
