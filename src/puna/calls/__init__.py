"""What a client asks of the control plane, one module a noun; `puna.client.Client` has all of it."""
