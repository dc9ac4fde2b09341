"""Settings that hold for every test: no network, and the same examples in every run."""

import os

from hypothesis import settings

# Set before anything imports a Hugging Face library, which reads it only once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# No deadlines, since machines may be slow, and no new random examples in unrelated changes.
settings.register_profile("stepagent", deadline=None, derandomize=True)
settings.load_profile("stepagent")
