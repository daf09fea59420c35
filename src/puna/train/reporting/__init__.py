"""What a run writes down and shows: records, report, plots, trackers."""
