"""The user's app: found, called, marshalled to and from, tried."""
