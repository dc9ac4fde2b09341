"""Environments of others as tasks: Gymnasium, OpenEnv, AgentGym."""
