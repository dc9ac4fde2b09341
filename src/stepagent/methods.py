"""The methods that a run compares: what each is called, and what it needs.

A method that learns has a learner in `learners/` and a field of its name in `TrainConfig`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    label: str
    """Its name in tables and figures."""
    kind: Literal["prompt", "novice", "control", "reflection", "baseline"]
    """Prompts and the novice learn nothing in rounds; all others start from the novice."""
    plays: bool = False
    """Whether it needs an environment to play episodes in."""
    has_examples: bool = False
    """Whether a prompt shows trajectories of the expert."""

    @property
    def has_rounds(self) -> bool:
        """Whether it learns in rounds."""
        return self.kind not in ("prompt", "novice")


METHODS = {
    "zero_shot": Method(label="Prompting, zero-shot", kind="prompt", plays=True),
    "react": Method(label="Prompting, ReAct", kind="prompt", plays=True, has_examples=True),
    "sft": Method(label="SFT (start)", kind="novice"),
    "sft_more": Method(label="SFT, continued", kind="control"),
    "implicit": Method(label="Implicit reflection", kind="reflection"),
    "inverse": Method(label="Inverse reflection", kind="reflection"),
    "step_dpo": Method(label="Step-wise DPO, no anchor", kind="baseline"),
    "dagger": Method(label="SFT in detours (DAgger)", kind="baseline", plays=True),
    "rft": Method(label="RFT", kind="baseline", plays=True),
    "eto": Method(label="ETO", kind="baseline", plays=True),
    "spin": Method(label="SPIN", kind="baseline", plays=True),
    "ppo": Method(label="PPO, final reward", kind="baseline", plays=True),
    "grpo": Method(label="GRPO, final reward", kind="baseline", plays=True),
}
"""By the name that options, files and rows of metrics use, in the order of tables."""

NOVICE = "sft"
CONTROL = "sft_more"
REFLECTIONS = tuple(name for name, method in METHODS.items() if method.kind == "reflection")


def method_label(name: str) -> str:
    """The method's name in tables; a method of the user's own is called by its key."""
    return METHODS[name].label if name in METHODS else name
