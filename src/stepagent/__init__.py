"""StepAgent: trains language-model agents from novice to expert, one step at a time."""
