"""Chat models on OpenAI-compatible servers that act in environments."""
