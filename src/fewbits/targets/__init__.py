"""What runs what fewbits writes: facts about containers, runtimes and hardware, as data with their sources."""
