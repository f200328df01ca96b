"""A real Kubernetes control plane, fake GPU nodes and a node agent, all as plain processes.

`python -m deploy.cluster run -- COMMAND` builds the pinned tools once, starts etcd, API server,
controller manager, scheduler and the agent inside namespaces of their own, runs the command there
and ends everything, whatever happens to the command or to itself. No container engine, no root:
user namespaces are enough. Nothing inside can reach the machine's own network.
"""
