"""The handlers of the API, one module a noun."""
