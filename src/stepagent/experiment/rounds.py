"""Rounds of inspection and reflection, each a unit of the run folder.

A round inspects the demonstrations and the held-out trajectories with its starting policy, lets the
learner measure that policy where it can, and then improves it. What is measured at the start of a
round therefore belongs to the round before; after the last one the final policy is measured too.
Then what the learner measures by judges the policies of all rounds once more, in the same states:
only such figures tell whether the agent has come closer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepagent.algorithms.discriminator import DiscriminatorAtChance
from stepagent.experiment.run import Run, write_json
from stepagent.learners.reflection import Learner
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.practice import Lesson, Practice, with_rewards
from stepagent.rendering.renderer import RenderedTrajectory


@dataclass(frozen=True)
class Explored:
    """Episodes that the policy of a round played itself."""

    episodes: Sequence[RenderedTrajectory]
    lost: int
    """Episodes whose environment was lost too often."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """One learner's rounds in a run folder."""

    run: Run
    method: str
    """Names units, files and rows of metrics."""
    learner: Learner
    practice: Practice
    novice: Path
    """Folder of the policy of round 0."""
    evaluate: Callable[[Policy, int], Mapping[str, float | None]]
    """Logs and returns how the policy of a round does on dev."""
    explore: Callable[[Policy, int, int], Explored] | None = None
    """The episodes of the policy in a round, by how many an item has and the round's number: one
    for each demonstration, so that an item is not played in every round if it has several."""

    def unit(self, number: int) -> str:
        """Name of a round's unit; its folder holds the policy after the round."""
        return f"{self.method}-round{number}"

    def go(self, policy: Policy, num_rounds: int) -> None:
        """All rounds that are not finished yet; the policy comes in as that of round 0.

        A discriminator at chance ends the rounds; why is recorded in config.json.
        """
        last = f"{self.method}-measure"
        if self.learner.measures and not self.run.is_done(last):
            self.practice.choose_compared(policy)
        try:
            done = 0
            while done < num_rounds and self.run.is_done(self.unit(done + 1)):
                done += 1
            if done:
                folder = self.run.unit_folder(self.unit(done))
                policy.restore(folder)
                self.learner.load(folder)
            for number in range(done + 1, num_rounds + 1):
                self._round(policy, number)
            if self.learner.measures and not self.run.is_done(last):
                with self.run.unit(last):
                    self._prepare(policy, num_rounds + 1)
                    self._compare(policy, num_rounds)
        except DiscriminatorAtChance as error:
            self.run.record_data(self.method, {"stopped": str(error)})

    def _round(self, policy: Policy, number: int) -> None:
        with self.run.unit(self.unit(number)) as folder:
            lesson = self._prepare(policy, number)
            rewards = self.learner.learn(
                policy, lesson, seed=self.practice.seed_of(number), log=self._log(number)
            )
            if rewards is not None:
                judged = with_rewards(lesson.held_out_practised, lesson.held_out_trees, rewards)
                self.run.write_records(f"practice/{self.unit(number)}.jsonl", judged)
            write_json(folder / "dev.json", self.evaluate(policy, number))
            policy.save(folder)
            self.learner.save(folder)

    def _explore(self, policy: Policy, number: int) -> Sequence[RenderedTrajectory]:
        """The round's episodes, counted: they are what reflection does without."""
        assert self.explore is not None
        found = self.explore(policy, self.learner.explores, number)
        played = [episode.trajectory for episode in found.episodes]
        self.run.log(
            stage=self.method,
            round=number,
            phase="explore",
            episodes=len(played),
            env_steps=sum(len(t.steps) for t in played),
            score=sum(t.score or 0.0 for t in played) / len(played),
            success=sum(bool(t.success) for t in played) / len(played),
            **({"lost": found.lost} if found.lost else {}),
        )
        return found.episodes

    def _prepare(self, policy: Policy, number: int) -> Lesson:
        """The lesson of a round, after the learner has measured on it what it can."""
        lesson = self.practice.lesson
        if self.learner.practises:
            lesson = self.practice.practised(policy, number)
        if lesson.detours is not None:
            facts: Metrics = {
                "taken": lesson.detours.taken,
                "refused": lesson.detours.refused,
                "not_repeated": lesson.detours.not_repeated,
                "env_steps": lesson.detours.env_steps,
            }
            if lesson.detours.lost:
                facts["lost"] = lesson.detours.lost
            self._log(number)("detours", facts)
        if self.learner.explores:
            lesson = replace(lesson, explored=self._explore(policy, number))
        if not self.learner.measures:
            return lesson
        if lesson.detours is not None:
            lesson = replace(lesson, compared=self.practice.compared(policy, number))
        seed = self.practice.seed_of(number)
        found = self.learner.measure(policy, lesson, seed=seed, log=self._log(number))
        if found is not None:
            self._log(number - 1)("dev", {"discriminator_accuracy": found.accuracy})
        return lesson

    def _compare(self, policy: Policy, num_rounds: int) -> None:
        """The last judgement: of the policies of all rounds, on what each does by the same seed."""
        for number in range(num_rounds + 1):
            policy.restore(self.run.unit_folder(self.unit(number)) if number else self.novice)
            found = self.learner.judge(policy, self.practice.compared(policy, num_rounds + 1))
            if found is not None:
                self._log(number)("dev", {"js_divergence": found.js_divergence})

    def _log(self, number: int) -> Callable[[str, Metrics], None]:
        def log(phase: str, metrics: Metrics) -> None:
            self.run.log(stage=self.method, round=number, phase=phase, **metrics)

        return log
