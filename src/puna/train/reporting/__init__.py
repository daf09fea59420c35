"""Records of a run: metrics, report, plots, trackers."""
