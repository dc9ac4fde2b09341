"""What the questions are asked about: two models, expert trajectories, walks of any length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import StepTree, step_tree
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.rendering.actions import same_action
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.tasks.scienceworld.task import ScienceWorld
from stepagent.trajectories import read_jsonl, write_jsonl
from stepagent.types import AgentAction, PracticedStep, Step, Trajectory

from .measuring import DTYPES

SEED = 0
RANK = 16
SHORT, LONG = "find-animal/1", "melt/0"
"""Items of ScienceWorld of 12 and of 32 steps: batch sizes 1, 2, 4 divide both."""
CLONED = tuple(f"find-animal/{number}" for number in range(2, 12))
"""Items whose trajectories are cloned before practice and rollouts are timed."""
CLONING = {"small": (20, 1e-3), "real": (2, 5e-5)}
"""Passes over them and learning rate."""
CONTEXT = 2**15
Plain = PreTrainedModel | PeftModel
WORDS = (
    "north",
    "south",
    "east",
    "west",
    "door",
    "key",
    "lamp",
    "box",
    "red",
    "green",
    "old",
    "open",
)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured."""

    small: Path
    """Folder of a model of 4 layers with random weights."""
    real: Path
    """Folder of a language model."""
    adapters: dict[Path, Path]
    """For each model folder that of a new LoRA adapter, with which both sides begin."""
    agents: dict[Path, Path]
    """For each model folder that of the model after SFT on other trajectories: it acts in as few
    words as the expert, often in the same."""
    short: Trajectory
    long: Trajectory
    precisions: tuple[str, ...]
    """Those for which the processor has units."""
    repeats: int = 3

    @property
    def models(self) -> dict[str, Path]:
        """Both models by name."""
        return {"small": self.small, self.real.name: self.real}


def prepare(folder: Path, real: Path, precisions: tuple[str, ...], repeats: int) -> Setup:
    """Makes the models, the adapters and the trajectories, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    file, small = folder / "trajectories.jsonl", folder / "small"
    if not file.exists():
        write_jsonl(file, _played([SHORT, LONG, *CLONED]))
    short, long, *cloned = read_jsonl(file, Trajectory)
    if not (small / "tokenizer.json").exists():
        known = [short, long, walk(8, 32)]
        build_tiny_model(known, TinyConfig(context=CONTEXT), seed=SEED, folder=small)
    adapters = {model: folder / f"{model.name}-lora" for model in (small, real)}
    for model, adapter in adapters.items():
        if not (adapter / "tokenizer.json").exists():
            add_adapter(model, adapter)
    agents = {model: folder / f"{model.name}-agent" for model in (small, real)}
    for model, agent in agents.items():
        if not (agent / "tokenizer.json").exists():
            clone(model, cloned, agent, *CLONING["small" if model == small else "real"])
    return Setup(
        small=small, real=real, adapters=adapters, agents=agents, short=short, long=long,
        precisions=precisions, repeats=repeats,
    )  # fmt: skip


def _played(items: Sequence[str]) -> list[Trajectory]:
    task = ScienceWorld(sorted({item.partition("/")[0] for item in items}))
    try:
        return [task.expert(item) for item in items]
    finally:
        task.close()


def clone(
    model: Path, trajectories: Sequence[Trajectory], agent: Path, epochs: int, learning_rate: float
) -> None:
    """Writes the model after SFT on the trajectories."""
    policy = Policy.load(model)
    optimizer = OptimizerConfig(learning_rate=learning_rate)
    config = SFTConfig(epochs=epochs, batch_size=1, optimizer=optimizer)
    rendered = [policy.render(trajectory) for trajectory in trajectories]
    sft(policy, rendered, config, seed=SEED, log=lambda _: None)
    policy.save(agent)


def add_adapter(model: Path, adapter: Path) -> None:
    """Writes a new adapter, which changes no output yet."""
    Policy.load(model, ComputeConfig(precision="float32"), LoRAConfig(rank=RANK), seed=SEED).save(
        adapter
    )


def walk(steps: int, words: int, number: int = 0) -> Trajectory:
    """A trajectory with as many words in each step, in the order of its number."""
    random = np.random.default_rng([SEED, steps, words, *([number] if number else [])])
    said = [" ".join(random.choice(WORDS, words - 4)) for _ in range(steps)]
    actions = [f"{n} " + " ".join(random.choice(WORDS, 3)) for n in range(steps)]
    return Trajectory(
        id=f"walk/{steps}x{words}",
        task="walk",
        instruction="Go on.",
        steps=tuple(Step(observation=o, action=a) for o, a in zip(said, actions, strict=True)),
    )


def open_policy(source: Path, precision: str) -> Policy:
    """Our side: a model folder or an adapter folder."""
    assert precision in ("float32", "bfloat16")
    return Policy.load(source, ComputeConfig(precision=precision))  # type: ignore[arg-type]


def open_plain(model: Path, adapter: Path | None, precision: str) -> Plain:
    """The same model as transformers and PEFT open it, its weights in this precision."""
    dtype = DTYPES[precision]
    plain: Plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    if adapter is not None:
        plain = PeftModel.from_pretrained(plain, str(adapter), is_trainable=True).to(dtype)
    return plain.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def mistakes(trajectory: Trajectory) -> list[str]:
    """For each step an action to reject: the expert's next one that differs.

    It is as long as the actions of an agent that has learnt to act, whatever the model.
    """
    actions = [step.action for step in trajectory.steps]
    return [
        next(a for a in actions[i:] + actions[:i] if not same_action(a, actions[i]))
        for i in range(len(actions))
    ]


def practised_tree(policy: Policy, trajectory: Trajectory) -> StepTree:
    """The trajectory's tree in which the agent makes a mistake in every state."""
    practised = [
        PracticedStep(
            trajectory_id=trajectory.id,
            step_index=number,
            expert_action=step.action,
            agent_actions=(
                AgentAction(text=said, token_ids=policy.renderer.action(said), logprob=-1.0),
            ),
        )
        for number, (step, said) in enumerate(
            zip(trajectory.steps, mistakes(trajectory), strict=True)
        )
    ]
    return step_tree(policy.render(trajectory), practised)


def rows_of(tree: StepTree) -> list[dict[str, list[int]]]:
    """For each step the ids of the prompt, of the expert's action and of the agent's."""
    nodes = tree.tree

    def ids(path: Sequence[int]) -> list[int]:
        return [nodes.tokens[node] for node in path]

    found = []
    for expert, agent in zip(nodes.paths[::2], nodes.paths[1::2], strict=True):
        prompt = nodes.ancestors(nodes.parents[expert[0]])
        found.append(
            {"prompt_ids": ids(prompt), "chosen_ids": ids(expert), "rejected_ids": ids(agent)}
        )
    return found
