"""The agent of a compute node: makes the node's servers what the controller says they should be.

Rooms, from the top: `daemon` builds everything; `session` speaks with the controller; `report` tells it what is seen and
used; `reconcile` brings servers to their desired state by the pure decisions of `plan`; `drivers` make libvirt, QEMU and
files obey; `spec` holds the nouns.
"""
