"""The algorithms, one file each: a pure loss, then the loss of a batch, then the training."""
