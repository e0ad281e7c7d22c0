"""The rack in a box: the hosts of a small cloud as namespaces of one machine, running the production daemons.

Nothing is added to the machine's own network but listeners on 127.0.0.1, and nothing in the box has a route out of it.
The box starts daemons as processes and imports none of them.
"""
