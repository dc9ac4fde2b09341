"""What improves a policy in a round: reflections, controls and baselines."""
