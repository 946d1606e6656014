"""What a run trains on: loaders, their place in the run, who gets which sample, random numbers, labels."""
