"""All settings of a run; every field is an option of `stepagent train`."""

from dataclasses import dataclass, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, cast, get_args, get_origin

from stepagent.algorithms.sft import SFTConfig
from stepagent.bounds import AMOUNT, COUNT, SEED, check_bounds
from stepagent.chat.inference.requests import Requests
from stepagent.console.printable import printable
from stepagent.evaluation import EvaluationConfig
from stepagent.learners.base import LearnerConfig
from stepagent.learners.baselines import (
    ETOConfig,
    FinalGRPOConfig,
    FinalPPOConfig,
    RFTConfig,
    SPINConfig,
)
from stepagent.learners.implicit import ImplicitConfig
from stepagent.learners.inverse import InverseConfig
from stepagent.learners.sft import DAggerConfig, MoreSFTConfig
from stepagent.methods import CONTROL, METHODS, REFLECTIONS
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import LoRAConfig
from stepagent.model.updates import OptimizerConfig
from stepagent.practice import InspectionConfig
from stepagent.scratch.pretraining import PretrainConfig
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.alfworld.task import AlfworldConfig
from stepagent.tasks.mind2web.task import Mind2WebConfig
from stepagent.tasks.own import EnvConfig
from stepagent.tasks.qa.task import QAConfig
from stepagent.tasks.scienceworld.task import ScienceWorldConfig
from stepagent.tasks.webshop.task import WebShopConfig


class SettingsError(RuntimeError):
    """Settings that contradict each other; the message is one line.

    Not a ValueError, which the command-line parser would print in a box of several lines.
    """


if TYPE_CHECKING:
    LearntMethod: TypeAlias = str
    PromptMethod: TypeAlias = str
    Reflection: TypeAlias = str
else:  # the names of the table, for options and their help; no type checker could read this
    LearntMethod = Literal[tuple(name for name, m in METHODS.items() if m.has_rounds)]
    PromptMethod = Literal[tuple(name for name, m in METHODS.items() if m.kind == "prompt")]
    Reflection = Literal[REFLECTIONS]


@dataclass(frozen=True, kw_only=True)
class PromptingConfig:
    """Baselines that prompt the model before any training."""

    methods: tuple[PromptMethod, ...] = ()
    """Prompting baselines to run: with the instruction only (zero_shot), or with expert
    trajectories as examples (react)."""
    few_shot: int = 2
    """Expert trajectories in a react prompt."""
    max_tokens: int = 256
    """Longest reply (thought and action), in tokens."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"few_shot": AMOUNT, "max_tokens": COUNT})


TaskConfig = ScienceWorldConfig | AlfworldConfig | WebShopConfig | Mind2WebConfig | QAConfig
"""An environment and its protocol."""

TASKS: dict[str, TaskConfig] = {
    "scienceworld": ScienceWorldConfig(),
    "alfworld": AlfworldConfig(),
    "webshop": WebShopConfig(),
    "mind2web": Mind2WebConfig(),
    "hotpotqa": QAConfig(dataset="hotpotqa"),
    "2wikimultihopqa": QAConfig(dataset="2wikimultihopqa"),
    "musique": QAConfig(dataset="musique"),
}
"""Every task by name, with its default protocol."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sizes of the splits, in items per group (task type, kind of question)."""

    sft: int = 36
    """Demonstrations that the novice is fine-tuned on."""
    reflection: int = 72
    """Demonstrations in whose states the agent acts, and from which the methods learn."""
    shared: int = 36
    """Demonstrations that are in both."""
    dev: int = 6
    """Dev items, which choose the best round. Their expert trajectories are held out."""
    test: int = 18
    """Test items, each played once per method."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds`, and `SettingsError` if more are shared than either has."""
        check_bounds(self, {"sft": COUNT, "reflection": COUNT, "dev": COUNT, "test": COUNT})
        if not 0 <= self.shared <= min(self.sft, self.reflection):
            raise SettingsError(
                f"--data.shared {self.shared}: expected 0 to {min(self.sft, self.reflection)}, "
                f"with {self.sft} demonstrations for SFT and {self.reflection} for the learners"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run."""

    task: TaskConfig | EnvConfig | None
    """The environment and its protocol; none for a run on demonstrations alone."""
    data: DataConfig = DataConfig()
    """Sizes of the splits."""
    model: TinyConfig | str = TinyConfig()
    """A small model to build from scratch; or a model folder, or the id of a model on the hub."""
    lora: LoRAConfig = LoRAConfig()
    """Train low-rank adapters instead of the whole model."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision and memory."""
    practise_with: str | None = None
    """Address of a vLLM or SGLang server that samples the agent's actions, such as
    http://localhost:8000; needs --lora.rank."""
    pretrain: PretrainConfig = PretrainConfig()
    """Pretraining of a model built from scratch, on all demonstrations of the run."""
    sft: SFTConfig = SFTConfig()
    """Fine-tuning on demonstrations, which makes the novice."""
    prompting: PromptingConfig = PromptingConfig()
    """Prompting baselines, which train nothing."""
    methods: tuple[LearntMethod, ...] = (CONTROL, *REFLECTIONS)
    """Methods to compare; each starts from the same novice."""
    rounds: int = 2
    """Rounds of each method; the best one on dev is tested."""
    inspection: InspectionConfig = InspectionConfig()
    """How the agent acts in the expert's states."""
    detours: int = 0
    """Replay the demonstrations in the environment with up to this many of the agent's mistakes in
    a row inserted, and practise after them too (implicit, inverse, step_dpo, dagger); 0 practises
    in the expert's states only and needs no environment."""
    sft_more: MoreSFTConfig = MoreSFTConfig(epochs=2, optimizer=OptimizerConfig(learning_rate=2e-4))
    """One round of the control; give it as many updates as a round of reflection."""
    dagger: DAggerConfig = DAggerConfig(epochs=2, optimizer=OptimizerConfig(learning_rate=2e-4))
    """One round of SFT in detours."""
    implicit: ImplicitConfig = ImplicitConfig()
    """One round of implicit reflection."""
    inverse: InverseConfig = InverseConfig()
    """One round of inverse reflection."""
    step_dpo: ImplicitConfig = ImplicitConfig(sft_coef=0.0)
    """One round of implicit reflection without its SFT term."""
    rft: RFTConfig = RFTConfig()
    """One round of rejection sampling."""
    eto: ETOConfig = ETOConfig()
    """One round of ETO."""
    spin: SPINConfig = SPINConfig()
    """One round of SPIN."""
    ppo: FinalPPOConfig = FinalPPOConfig(epochs=1, sft_coef=0.0, kl_coef=0.04)
    """One round of PPO on final rewards."""
    grpo: FinalGRPOConfig = FinalGRPOConfig()
    """One round of GRPO on final rewards."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Episodes on dev and test."""
    seed: int = 0
    """Seed of weights, data order and sampling; dev and test items are the same for all seeds."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds`, and `SettingsError` for settings of a wrong type or in conflict."""
        _check_types(self)
        check_bounds(self, {"rounds": COUNT, "seed": SEED})
        for learnt in (self.sft, self.sft_more, self.dagger, self.rft.sft):
            check_bounds(learnt, {"epochs": COUNT})
        check_practise_with(self.practise_with, self.lora)
        if self.detours < 0:
            raise SettingsError(f"--detours {self.detours}: expected 0 or more")
        if self.detours and self._rolls_out:
            raise SettingsError(
                "--inverse.states rollout: the agent acts in its own states; expected --detours 0"
            )
        if not self.detours and "dagger" in self.methods:
            raise SettingsError("--methods dagger: learns in detours; expected --detours 1 or more")

    @property
    def played(self) -> list[str]:
        """Options that make the agent play the items of the demonstrations."""
        found = [f"--methods {name}" for name in self.methods if METHODS[name].plays]
        found += [f"--detours {self.detours}"] if self.detours else []
        return found + (["--inverse.states rollout"] if self._rolls_out else [])

    @property
    def _rolls_out(self) -> bool:
        return "inverse" in self.methods and self.inverse.states == "rollout"

    def check_without_environment(self) -> None:
        """Raises `SettingsError` if something has to be played and there is no environment."""
        played = self.played + [f"--prompting.methods {name}" for name in self.prompting.methods]
        if played:
            raise SettingsError(
                f"{played[0]}: needs an environment, which this run does not have; name one with "
                "--env"
            )

    def learner_config(self, method: str) -> LearnerConfig:
        """The settings of a method that learns in rounds: the field of its name."""
        return cast(LearnerConfig, getattr(self, method))


def check_practise_with(url: str | None, lora: LoRAConfig) -> None:
    """Raises `SettingsError` if whole models are trained, and `ChatError` for no address."""
    if url is None:
        return
    Requests(url)
    if not lora.rank:
        raise SettingsError(
            "--practise-with: hands adapters over to the server; expected --lora.rank 16, or "
            "another rank above 0"
        )


def _check_types(config: TrainConfig) -> None:
    """Raises `SettingsError` for a value of another type: the config of one method for another."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not _is_of(field.type, value):
            shown = repr(value) if isinstance(value, str | int | tuple) else type(value).__name__
            raise SettingsError(
                f"{field.name} is {printable(shown, limit=100)}; expected {_kind_name(field.type)}"
            )


def _is_of(kind: Any, value: object) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_of(member, value) for member in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(inner[0], part) for part in value)
    if origin is Literal:
        return value in inner
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _kind_name(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_kind_name, inner))
    if origin is tuple:
        return f"a tuple of {_kind_name(inner[0])}"
    if origin is Literal:
        return ", ".join(map(str, inner))
    return "None" if kind is type(None) else kind.__name__
