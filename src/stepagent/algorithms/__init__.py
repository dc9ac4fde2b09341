"""The algorithms, one small file each: pure loss first, then the update, then the loop."""
