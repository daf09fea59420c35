"""Engines that apps hold, changed in place so that many callers share them."""
