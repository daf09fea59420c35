"""HTTP as the gateway speaks it: connections, bodies, replies, and the way to the control plane."""
