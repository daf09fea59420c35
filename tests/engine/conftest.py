"""The stories' own `puna up`, for engines too."""

from stories.conftest import shared_up as shared_up
