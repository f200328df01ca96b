"""The node agent: runs pods of its nodes as local processes, each pod on an address of its own.

What a kubelet, a container runtime, kube-proxy, cluster DNS and a volume provisioner do together,
as far as tests need it: one process stands for all nodes. It speaks only to the API server, and
pods die with it. It does not limit CPU or memory, enforce NetworkPolicies, or pull images: a
repository is mapped to programs of this machine (images.py).
"""
