"""The algorithms, one small file each: the loss as a pure function, then the update, then the loop."""
