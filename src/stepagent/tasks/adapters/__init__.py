"""Foreign environments as tasks: Gymnasium, OpenEnv, AgentGym."""
