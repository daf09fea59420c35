"""The JSON API: the application, its layers, and the routes by noun."""
