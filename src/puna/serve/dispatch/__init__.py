"""From a call to a replica: pools, pending queues, worker connections, routing."""
