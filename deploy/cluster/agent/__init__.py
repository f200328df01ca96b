"""The node agent: runs the pods bound to its nodes as local processes, each on its own address.

What a kubelet, a container runtime, kube-proxy, cluster DNS and a volume provisioner do together, as
far as tests need it: one process stands for all nodes. It speaks only to the API server, and pods
die with it. It does not limit CPU or memory, enforce NetworkPolicies, or pull images: a repository
is mapped to programs of this machine (images.py).
"""
