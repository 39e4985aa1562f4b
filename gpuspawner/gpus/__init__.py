"""The GPUs of all nodes, their state, and the policies that choose which of them to hand out."""
