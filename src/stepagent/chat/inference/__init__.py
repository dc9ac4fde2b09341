"""Actions sampled by an inference server, vLLM or SGLang, instead of this process."""
