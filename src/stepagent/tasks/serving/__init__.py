"""Serves tasks as OpenEnv servers, for other trainers."""
