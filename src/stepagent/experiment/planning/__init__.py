"""What a run will take: tokens, updates, hours and memory, before anything is trained."""
