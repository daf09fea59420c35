"""From what is asked for to what runs: plan, placement, sleep, launches, and the loop that acts."""
