"""Rounds of inspection and reflection, each a unit of the run folder.

    for each round: lesson = practice of the round's starting policy
                    learn from the lesson, evaluate on dev, save

What a learner measures at the start of a round belongs to the policy of the round before; after the
last round the final policy is measured too. Then the final discriminator re-scores the policies of
all rounds in the same states: only these figures are comparable between rounds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stepagent.experiment.run import Run
from stepagent.experiment.run_folder import DEV_FILE, measure_unit, practice_file, round_unit
from stepagent.experiment.run_json import write_json
from stepagent.learners.base import Learner, LearnerStopped, Measures
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.practice import Comparison, Lesson, Practice, with_rewards


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

    def go(self, policy: Policy, num_rounds: int) -> None:
        """Runs all rounds that are not finished yet, from the policy of round 0.

        A learner that stops ends the rounds; config.json records why.
        """
        last = measure_unit(self.method)
        comparison = None
        if isinstance(self.learner, Measures) and not self.run.is_done(last):
            comparison = self.practice.comparison(policy)
        try:
            done = 0
            while done < num_rounds and self.run.is_done(round_unit(self.method, done + 1)):
                done += 1
            if done:
                folder = self.run.unit_folder(round_unit(self.method, done))
                policy.restore(folder)
                self.learner.load(folder)
            for number in range(done + 1, num_rounds + 1):
                self._round(policy, number, comparison)
            if comparison is not None:
                with self.run.unit(last):
                    self._measure(policy, num_rounds, comparison)
        except LearnerStopped as error:
            self.run.record_data(self.method, {"stopped": str(error)})

    def _round(self, policy: Policy, number: int, comparison: Comparison | None) -> None:
        unit = round_unit(self.method, number)
        with self.run.unit(unit) as folder:
            lesson = self._lesson(policy, number, comparison)
            rewards = self.learner.learn(
                policy, lesson, seed=self.practice.seed_of(number), log=self._log(number)
            )
            if rewards is not None:
                judged = with_rewards(lesson.held_out_practised, lesson.held_out_trees, rewards)
                self.run.write_records(practice_file(self.method, number), judged)
            write_json(folder / DEV_FILE, self.evaluate(policy, number))
            policy.save(folder)
            self.learner.save(folder)

    def _measure(self, policy: Policy, num_rounds: int, comparison: Comparison) -> None:
        """Measures the final policy; then re-scores the policies of all rounds."""
        learner, after = self.learner, num_rounds + 1
        assert isinstance(learner, Measures)
        lesson = self._lesson(policy, after, comparison)
        learner.measure(policy, lesson, seed=self.practice.seed_of(after), log=self._log(after))
        for number in range(num_rounds + 1):
            unit = round_unit(self.method, number)
            policy.restore(self.run.unit_folder(unit) if number else self.novice)
            practised = lesson.compared if number == num_rounds else comparison(policy, after)
            found = learner.judge(policy, practised)
            self._log(number)("dev", {"js_divergence": found.js_divergence})

    def _lesson(self, policy: Policy, number: int, comparison: Comparison | None) -> Lesson:
        """The lesson of a round; logs what playing in the environment cost."""
        lesson = self.practice.lesson(
            policy,
            number,
            practises=self.learner.practises,
            explores=self.learner.explores,
            comparison=comparison,
        )
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
        if lesson.explored:
            played = [episode.trajectory for episode in lesson.explored]
            facts = {
                "episodes": len(played),
                "env_steps": sum(len(t.steps) for t in played),
                "score": sum(t.score or 0.0 for t in played) / len(played),
                "success": sum(bool(t.success) for t in played) / len(played),
            }
            if lesson.lost:
                facts["lost"] = lesson.lost
            self._log(number)("explore", facts)
        return lesson

    def _log(self, number: int) -> Callable[[str, Metrics], None]:
        def log(phase: str, metrics: Metrics) -> None:
            is_start = phase == "start"
            row = (number - 1, "dev") if is_start else (number, phase)
            self.run.log(stage=self.method, round=row[0], phase=row[1], **metrics)

        return log
