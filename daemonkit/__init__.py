"""What a daemon is made of: lifecycle, clock, config, errors, rpc, ledger, session, command, log, metrics.

Knows no resource of the cloud. Everything that touches time, randomness, threads or subprocesses is here once, so that a
simulation can replace it.
"""

import os

# Read when gRPC is loaded: it would write lines of its own, which are no JSON, among ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
