"""From what is asked for to what runs: autoscaler, plan, placement, sleep, launches, and the loop that acts."""
