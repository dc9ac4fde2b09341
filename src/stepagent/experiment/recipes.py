"""Recipes: named complete settings for `stepagent train`; any field can be overridden there.

stepagent train scienceworld-demo --out runs/demo
stepagent train scienceworld-demo --out runs/seed-1 --seed 1 --rounds 3
"""

from dataclasses import replace

from stepagent.algorithms.discriminator import DiscriminatorConfig
from stepagent.algorithms.ppo import PPOConfig
from stepagent.algorithms.sft import SFTConfig
from stepagent.evaluation import EvaluationConfig
from stepagent.experiment.config import (
    TASKS,
    DataConfig,
    PromptingConfig,
    TaskConfig,
    TrainConfig,
)
from stepagent.experiment.defaults import Situation, default_settings
from stepagent.learners.baselines import ETOConfig, FinalGRPOConfig, RFTConfig, SPINConfig
from stepagent.learners.implicit import ImplicitConfig
from stepagent.learners.inverse import InverseConfig
from stepagent.learners.sft import DAggerConfig, MoreSFTConfig
from stepagent.methods import METHODS
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.updates import OptimizerConfig
from stepagent.practice import InspectionConfig
from stepagent.scratch.pretraining import PretrainConfig
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.alfworld.task import AlfworldConfig
from stepagent.tasks.mind2web.task import Mind2WebConfig
from stepagent.tasks.scienceworld.task import ScienceWorldConfig
from stepagent.tasks.webshop.task import WebShopConfig

_ADAM = OptimizerConfig(learning_rate=3e-4)


def _copying(epochs: int) -> SFTConfig:
    return replace(PretrainConfig().copying, epochs=epochs)


_FIVE_TYPES = ScienceWorldConfig(
    task_types=(
        "find-animal",
        "find-living-thing",
        "find-non-living-thing",
        "find-plant",
        "lifespan-longest-lived-then-shortest-lived",
    ),
    step_limit=25,
)

SCIENCEWORLD_DEMO = TrainConfig(
    task=_FIVE_TYPES,
    # Half of what reflection practises on was not cloned: the agent cannot have memorized it.
    data=DataConfig(sft=18, reflection=37, shared=18, dev=6, test=12),
    model=TinyConfig(hidden_size=192),
    # Few demonstrations take more passes to learn copying. Names are permuted in all of them, or
    # pretraining would clone the other half.
    pretrain=PretrainConfig(renamed=1.0, copying=_copying(epochs=24)),
    sft=SFTConfig(epochs=3, batch_size=1, optimizer=OptimizerConfig(learning_rate=1e-3)),
    rounds=2,
    detours=1,
    inspection=InspectionConfig(num_actions=2, decoding=Decoding(max_new_tokens=24)),
    # One pass of every learner over the same trajectories: the same number of updates for all.
    sft_more=MoreSFTConfig(epochs=1, batch_size=1, optimizer=_ADAM),
    # Why beta = 1: docs/method.md. The anchor then weighs as it does with 0.1 and an anchor of 1.
    implicit=ImplicitConfig(beta=1.0, sft_coef=10.0, epochs=1, batch_size=1, optimizer=_ADAM),
    inverse=InverseConfig(
        discriminator=DiscriminatorConfig(warmup_epochs=8, batch_size=4, optimizer=_ADAM),
        ppo=PPOConfig(epochs=1, batch_size=1, optimizer=_ADAM),
    ),
    # A greedy policy repeats an action that has just failed, up to the step limit.
    evaluation=EvaluationConfig(decoding=Decoding(max_new_tokens=24, temperature=0.5)),
)
"""From novice to expert on five task types, with a small model made from scratch."""


_WHOLE = PretrainConfig(copying=_copying(epochs=10), characters=1000)
"""In ALFWorld actions name what an observation lists, so observations are not shortened."""


def _results(
    task: TaskConfig,
    data: DataConfig,
    decoding: Decoding,
    pretrain: PretrainConfig,
    epochs: int,
    ppo_anchor: float,
) -> TrainConfig:
    """All methods, each with one update for every demonstration, episode or pair in a round.

    docs/results-protocol.md says how settings are chosen.
    """
    inverse = SCIENCEWORLD_DEMO.inverse
    slow, slower, slowest = (OptimizerConfig(learning_rate=rate) for rate in (1e-4, 3e-5, 1e-5))
    once = SFTConfig(epochs=1, batch_size=1, optimizer=slower)
    return replace(
        SCIENCEWORLD_DEMO,
        task=task,
        data=data,
        pretrain=pretrain,
        sft=replace(SCIENCEWORLD_DEMO.sft, epochs=epochs),
        # A model from scratch writes no thoughts before its action.
        prompting=PromptingConfig(methods=("zero_shot", "react"), max_tokens=64),
        methods=tuple(name for name, method in METHODS.items() if method.has_rounds),
        inspection=replace(SCIENCEWORLD_DEMO.inspection, decoding=decoding),
        sft_more=MoreSFTConfig(epochs=1, batch_size=1, optimizer=slow),
        dagger=DAggerConfig(epochs=1, batch_size=1, optimizer=_ADAM),
        inverse=replace(inverse, ppo=replace(inverse.ppo, sft_coef=ppo_anchor, optimizer=slow)),
        step_dpo=replace(SCIENCEWORLD_DEMO.implicit, sft_coef=0.0, optimizer=slower),
        rft=RFTConfig(sft=once),
        eto=ETOConfig(batch_size=1, optimizer=slowest),
        spin=SPINConfig(batch_size=1, optimizer=slower),
        ppo=replace(SCIENCEWORLD_DEMO.ppo, batch_size=1, optimizer=slower),
        grpo=FinalGRPOConfig(batch_size=1, optimizer=_ADAM),
        evaluation=EvaluationConfig(decoding=replace(decoding, temperature=0.5)),
    )


SCALE_ACTION = 24
"""Tokens of the longest actions in ScienceWorld and ALFWorld."""

_LORA_ADAM = OptimizerConfig(learning_rate=2e-4)

SCIENCEWORLD_SMOLLM2 = TrainConfig(
    task=ScienceWorldConfig(
        task_types=(
            "find-animal",
            "find-living-thing",
            "find-non-living-thing",
            "lifespan-longest-lived-then-shortest-lived",
        ),
        step_limit=25,
    ),
    data=DataConfig(sft=18, reflection=10, shared=0, dev=3, test=8),
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    lora=LoRAConfig(rank=16),
    sft=SFTConfig(epochs=2, batch_size=2, optimizer=OptimizerConfig(learning_rate=1e-3)),
    rounds=1,
    detours=1,
    inspection=InspectionConfig(num_actions=2, decoding=Decoding(max_new_tokens=20)),
    sft_more=MoreSFTConfig(epochs=1, batch_size=2, optimizer=_LORA_ADAM),
    implicit=ImplicitConfig(epochs=1, batch_size=2, optimizer=_LORA_ADAM),
    inverse=InverseConfig(
        discriminator=DiscriminatorConfig(warmup_epochs=4, batch_size=2, optimizer=_LORA_ADAM),
        ppo=PPOConfig(epochs=1, batch_size=2, optimizer=_LORA_ADAM),
    ),
    evaluation=EvaluationConfig(decoding=Decoding(max_new_tokens=20, temperature=0.5)),
)
"""LoRA on a real language model of 135 million parameters, which a CPU can train."""


def _tiny(task: TaskConfig, data: DataConfig) -> TrainConfig:
    """The demo's small model and settings on another task, one round of each method."""
    long = Decoding(max_new_tokens=32)
    return replace(
        SCIENCEWORLD_DEMO,
        task=task,
        data=data,
        rounds=1,
        inspection=replace(SCIENCEWORLD_DEMO.inspection, decoding=long),
        evaluation=EvaluationConfig(decoding=replace(long, temperature=0.5)),
    )


def _scale(task: TaskConfig, data: DataConfig, demonstrations: int) -> TrainConfig:
    """LoRA on a model of seven billion parameters, with batches that eight GPUs can share.

    The defaults of `stepagent train own` for such a model. Nobody has run it yet.
    """
    known = Situation(
        parameters=7_600_000_000,
        adapted=True,
        on_gpu=True,
        demonstrations=demonstrations,
        longest_action=SCALE_ACTION,
        takes_detours=True,
    )
    return replace(default_settings(known), task=task, data=data, model="Qwen/Qwen2.5-7B-Instruct")


_ONE_EPOCH = SFTConfig(epochs=1, optimizer=OptimizerConfig(learning_rate=1e-3))

SMOKE = TrainConfig(
    task=ScienceWorldConfig(
        task_types=("lifespan-longest-lived-then-shortest-lived",),
        step_limit=5,
    ),
    data=DataConfig(sft=2, reflection=2, shared=2, dev=2, test=1),
    model=TinyConfig(vocab_size=512, hidden_size=64, num_layers=2, num_heads=2),
    pretrain=PretrainConfig(reading=_ONE_EPOCH, copying=_ONE_EPOCH),
    sft=_ONE_EPOCH,
    sft_more=MoreSFTConfig(epochs=1, optimizer=_ONE_EPOCH.optimizer),
    rounds=1,
    # So few steps need many passes before the discriminator beats chance on held-out ones.
    inverse=InverseConfig(
        discriminator=DiscriminatorConfig(
            warmup_epochs=40, optimizer=OptimizerConfig(learning_rate=3e-3)
        )
    ),
)
"""Every stage once, as small as possible: tests that it runs, not that it learns."""

RECIPES: dict[str, TrainConfig] = {
    "scienceworld-demo": SCIENCEWORLD_DEMO,
    "scienceworld-results": _results(
        _FIVE_TYPES,
        DataConfig(sft=37, reflection=75, shared=37, dev=12, test=40),
        Decoding(max_new_tokens=24),
        PretrainConfig(renamed=1.0),
        epochs=3,
        ppo_anchor=1.0,
    ),
    "alfworld-results": _results(
        AlfworldConfig(step_limit=30),
        DataConfig(sft=50, reflection=50, shared=50, dev=8, test=140),
        Decoding(),
        _WHOLE,
        epochs=6,
        ppo_anchor=10.0,
    ),
    "scienceworld-smollm2": SCIENCEWORLD_SMOLLM2,
    "alfworld-tiny": replace(
        _tiny(TASKS["alfworld"], DataConfig(sft=30, reflection=50, shared=30, dev=4, test=10)),
        pretrain=_WHOLE,
    ),
    "webshop-tiny": _tiny(
        WebShopConfig(step_limit=8), DataConfig(sft=6, reflection=12, shared=6, dev=2, test=4)
    ),
    "mind2web-tiny": _tiny(
        Mind2WebConfig(test="held_out", page_chars=500),
        DataConfig(sft=10, reflection=30, shared=10, dev=8, test=8),
    ),
    **{
        f"{name}-tiny": _tiny(
            TASKS[name], DataConfig(sft=15, reflection=35, shared=15, dev=6, test=15)
        )
        for name in ("hotpotqa", "2wikimultihopqa", "musique")
    },
    "scienceworld-scale": _scale(
        ScienceWorldConfig(),
        DataConfig(sft=50, reflection=100, shared=50, dev=10, test=10),
        demonstrations=3000,
    ),
    "alfworld-scale": _scale(
        AlfworldConfig(step_limit=30),
        DataConfig(sft=250, reflection=500, shared=250, dev=10, test=140),
        demonstrations=3000,
    ),
    "smoke": SMOKE,
}
