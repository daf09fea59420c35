"""A home, a launch, an owner and a local backend, as the backends' tests have them."""

from backends.conftest import home, launch, local, owner  # noqa: F401 - fixtures
