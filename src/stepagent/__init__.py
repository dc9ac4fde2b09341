"""StepAgent: trains language-model agents from novice to expert by inspection and reflection.

    import stepagent

    demonstrations = stepagent.read_trajectories("demonstrations.jsonl")
    policy = stepagent.Policy.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    stepagent.sft(policy, demonstrations[10:])
    lesson = stepagent.inspect(policy, demonstrations[10:], demonstrations[:10])
    stepagent.reflect(policy, lesson, stepagent.ImplicitConfig().learner(policy))
    policy.save("agent")

Names are loaded when they are first used, so that importing the package does not load PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepagent.algorithms.discriminator import DiscriminatorConfig
    from stepagent.algorithms.ppo import PPOConfig
    from stepagent.algorithms.sft import SFTConfig
    from stepagent.api.learning import evaluate, inspect, likeness, reflect, sft
    from stepagent.api.models import from_scratch
    from stepagent.api.step_rewards import score
    from stepagent.api.trajectory_files import read_trajectories, write_trajectories
    from stepagent.api.whole_run import Results, load_settings, train
    from stepagent.evaluation import Evaluation, EvaluationConfig, Likeness
    from stepagent.experiment.config import DataConfig, TrainConfig
    from stepagent.inspection import agreement
    from stepagent.learners.base import Learner, LearnerConfig, Stateless
    from stepagent.learners.implicit import ImplicitConfig
    from stepagent.learners.inverse import InverseConfig
    from stepagent.learners.sft import MoreSFTConfig
    from stepagent.model.device import ComputeConfig, deterministic
    from stepagent.model.generation import Decoding
    from stepagent.model.lora import LoRAConfig
    from stepagent.model.policy import Policy
    from stepagent.model.updates import OptimizerConfig
    from stepagent.practice import InspectionConfig, Lesson
    from stepagent.scratch.pretraining import PretrainConfig
    from stepagent.scratch.small_model import TinyConfig
    from stepagent.tasks.adapters.gymnasium import GymTask
    from stepagent.tasks.adapters.scoring import Scoring
    from stepagent.tasks.base import Task
    from stepagent.tasks.demonstrations import collect
    from stepagent.tasks.own import EnvConfig, open_environment
    from stepagent.types import AgentAction, PracticedStep, Step, Trajectory

__all__ = [
    "AgentAction",
    "ComputeConfig",
    "DataConfig",
    "Decoding",
    "DiscriminatorConfig",
    "EnvConfig",
    "Evaluation",
    "EvaluationConfig",
    "GymTask",
    "ImplicitConfig",
    "InspectionConfig",
    "InverseConfig",
    "Learner",
    "LearnerConfig",
    "Lesson",
    "Likeness",
    "LoRAConfig",
    "MoreSFTConfig",
    "OptimizerConfig",
    "PPOConfig",
    "Policy",
    "PracticedStep",
    "PretrainConfig",
    "Results",
    "SFTConfig",
    "Scoring",
    "Stateless",
    "Step",
    "Task",
    "TinyConfig",
    "TrainConfig",
    "Trajectory",
    "agreement",
    "collect",
    "deterministic",
    "evaluate",
    "from_scratch",
    "inspect",
    "likeness",
    "load_settings",
    "open_environment",
    "read_trajectories",
    "reflect",
    "score",
    "sft",
    "train",
    "write_trajectories",
]

_MODULES = {
    "algorithms.discriminator": ("DiscriminatorConfig",),
    "algorithms.ppo": ("PPOConfig",),
    "algorithms.sft": ("SFTConfig",),
    "api.learning": ("evaluate", "inspect", "likeness", "reflect", "sft"),
    "api.models": ("from_scratch",),
    "api.step_rewards": ("score",),
    "api.trajectory_files": ("read_trajectories", "write_trajectories"),
    "api.whole_run": ("Results", "load_settings", "train"),
    "evaluation": ("Evaluation", "EvaluationConfig", "Likeness"),
    "experiment.config": ("DataConfig", "TrainConfig"),
    "inspection": ("agreement",),
    "learners.base": ("Learner", "LearnerConfig", "Stateless"),
    "learners.implicit": ("ImplicitConfig",),
    "learners.inverse": ("InverseConfig",),
    "learners.sft": ("MoreSFTConfig",),
    "model.device": ("ComputeConfig", "deterministic"),
    "model.generation": ("Decoding",),
    "model.lora": ("LoRAConfig",),
    "model.policy": ("Policy",),
    "model.updates": ("OptimizerConfig",),
    "practice": ("InspectionConfig", "Lesson"),
    "scratch.pretraining": ("PretrainConfig",),
    "scratch.small_model": ("TinyConfig",),
    "tasks.adapters.gymnasium": ("GymTask",),
    "tasks.adapters.scoring": ("Scoring",),
    "tasks.base": ("Task",),
    "tasks.demonstrations": ("collect",),
    "tasks.own": ("EnvConfig", "open_environment"),
    "types": ("AgentAction", "PracticedStep", "Step", "Trajectory"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
