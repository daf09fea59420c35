"""The web page: plain files without a build step, over the same JSON API as the command line."""
