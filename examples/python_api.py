"""The loop of rounds, written out with the Python API.

    python examples/python_api.py --out runs/python-api

Reads demonstrations, trains a novice, and improves it by rounds of inspection and reflection. No
environment is needed: rounds are compared by how close they are to the expert on held-out steps.
"""

import argparse
from pathlib import Path

import stepagent
from stepagent import Decoding, ImplicitConfig, InspectionConfig, OptimizerConfig, SFTConfig

MESSAGES = Path(__file__).with_name("messages.jsonl")


def main() -> None:
    """Writes the policy of every round to a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demonstrations", type=Path, default=MESSAGES)
    parser.add_argument("--model", help="a folder or an id on the hub; a small one by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    stepagent.deterministic()
    trajectories = stepagent.read_trajectories(given.demonstrations)
    held_out, demonstrations = trajectories[::5], [t for n, t in enumerate(trajectories) if n % 5]
    if given.model:
        policy = stepagent.Policy.load(given.model, lora=stepagent.LoRAConfig(rank=16))
    else:
        size = stepagent.TinyConfig(vocab_size=400, hidden_size=96)
        policy = stepagent.from_scratch(demonstrations, size)
    stepagent.sft(policy, demonstrations, SFTConfig(epochs=2, batch_size=2))
    report(policy, held_out, "novice")

    practice = InspectionConfig(num_actions=2, decoding=Decoding(max_new_tokens=32))
    config = ImplicitConfig(batch_size=2, optimizer=OptimizerConfig(learning_rate=3e-4))
    learner = config.learner(policy)
    for number in range(1, given.rounds + 1):
        lesson = stepagent.inspect(policy, demonstrations, held_out, practice, round=number)
        steps = stepagent.reflect(policy, lesson, learner, seed=number)
        policy.save(given.out / f"round{number}")
        report(policy, held_out, f"round {number}")
        best = max(steps, key=lambda step: step.expert_reward or 0.0)
        print(f"  largest step reward: {best.expert_reward:.2f} for {best.expert_action!r}")


def report(policy: stepagent.Policy, held_out: list[stepagent.Trajectory], name: str) -> None:
    """How close the policy is to the expert."""
    found = stepagent.likeness(policy, held_out, max_new_tokens=32)
    print(f"{name}: {found.agreement:.0%} of held-out steps as the expert, "
          f"expert log-probability {found.expert_logprob:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
