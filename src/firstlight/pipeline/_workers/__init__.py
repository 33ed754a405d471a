"""Worker processes: who gets which event, what both sides say, and what happens when one dies or hangs."""
