"""Records, states and settings: what the control plane is about; imports nothing else of it."""
