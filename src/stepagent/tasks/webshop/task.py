"""WebShop: buy what an instruction asks for in a shop of Amazon's products (Yao et al. 2022).

This is a reimplementation of the original's text mode (arXiv 2207.01206, princeton-nlp/WebShop)
with the same pages, actions, rewards and order of goals, but without Java, a web server or spaCy.
An item is a goal by its position in the shuffled list, e.g. `synthetic/0` or `human/0`.

The score is 100 times the reward of the purchase, which ends the episode, or 0 without a purchase.
Success means a reward of 1.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

from stepagent.tasks.base import Split
from stepagent.tasks.data.optional_packages import needs
from stepagent.tasks.data.sources import required
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.tasks.webshop.nouns import RULES, tagger
from stepagent.tasks.webshop.pages import Page
from stepagent.tasks.webshop.products import FACTS
from stepagent.types import Trajectory

if TYPE_CHECKING:
    from stepagent.tasks.webshop.goals import Goal
    from stepagent.tasks.webshop.products import Product
    from stepagent.tasks.webshop.shop import Shop

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")

NOT_BOUGHT = {"reward": 0.0}

SPLITS: tuple[Split, ...] = get_args(Split)
NUM_TEST, NUM_DEV = 500, 1000
"""The original's splits: first test, then dev; the rest is for training."""


@dataclass(frozen=True, kw_only=True)
class WebShopConfig:
    """Settings of WebShop, in all of which papers differ."""

    goals: Literal["synthetic", "human"] = "synthetic"
    """Instructions: synthetic, made of attributes and options, or human, written by people, which
    need the full catalogue (only 13 are about the small one's 1,000 products)."""
    step_limit: int = 15
    """Most actions an episode may have before it is truncated; papers use 10, 15 or 20."""
    goal_seed: int = 233
    """Seed of the order of goals, the prices and the price limits; 233 gives the original's order
    of goals."""
    tagger: str = RULES
    """How the reward finds nouns in product titles: rules, or the name of an installed spaCy model
    such as en_core_web_sm."""

    def make_task(self) -> "WebShop":
        """The task with these settings; raises ValueError if the tagger is not installed."""
        return WebShop(self)


class WebShop:
    """The WebShop benchmark; its expert is a shopper that knows the goal.

    The data that `stepagent download webshop` installed, or that in `folder`, is opened when it is
    first used.
    """

    name = "webshop"

    def __init__(self, config: WebShopConfig = WebShopConfig(), folder: Path | None = None) -> None:
        """Raises ValueError for a step limit below 1 or a tagger that is not installed."""
        if config.step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, not {config.step_limit}")
        self.config = config
        self.nouns = tagger(config.tagger)
        self._folder = folder
        self._shop: Shop | None = None
        self._lock = threading.Lock()

    @property
    def shop(self) -> "Shop":
        """Products, search and goals."""
        with self._lock:
            if self._shop is None:
                with needs("webshop"):
                    from stepagent.tasks.webshop.shop import Shop
                folder = self._folder or required(self.name, FACTS).parent
                self._shop = Shop(folder, self.config.goals, self.config.goal_seed)
            return self._shop

    def items(self, split: Split) -> Sequence[str]:
        """Ids of all goals of the split, in their shuffled order."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected {', '.join(SPLITS)}")
        numbers = split_ranges(len(self.shop.goals))[split]
        return [f"{self.config.goals}/{number}" for number in numbers]

    def group(self, item: str) -> str:
        """The department of the goal's product."""
        return self.goal(item).product.category

    def make_env(self) -> "WebShopEnv":
        """A new environment with this task's step limit."""
        return WebShopEnv(self, self.config.step_limit)

    def expert(self, item: str) -> Trajectory:
        """Plays the shopper that knows the goal; raises `ExpertFailed` if the reward is below 1."""
        goal = self.goal(item)
        from stepagent.tasks.webshop.expert import plan

        actions = iter(plan(goal, self.shop.search))
        metadata = {"asin": goal.product.asin, "category": goal.product.category}
        env = WebShopEnv(self, step_limit=None)
        return follow(self, env, item, lambda observation: next(actions, None), metadata)

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """The paper's task score (100 times the mean reward) and success rate, both 0 to 100."""
        rewards = [_reward_of(episode) for episode in episodes]
        return {
            "task_score": 100 * fmean(rewards),
            "success_rate": 100 * fmean(reward == 1 for reward in rewards),
        }

    def facts(self) -> dict[str, Any]:
        """The evaluation protocol for reports: catalogue, goals, limits, search, scoring."""
        goals = len(self.shop.goals)
        return {
            "task": self.name,
            "engine": "own text engine after princeton-nlp/WebShop@64fa2a5, text mode",
            "catalogue": self.shop.facts,
            "goals": self.config.goals,
            "num_goals": goals,
            "splits": {name: len(numbers) for name, numbers in split_ranges(goals).items()},
            "goal_seed": self.config.goal_seed,
            "step_limit": self.config.step_limit,
            "search": f"bm25s {version('bm25s')}, lucene, k1 0.9, b 0.4, Porter stemmer",
            "nouns": self.config.tagger,
            "score": "100 times the reward of the purchase, 0 without one",
            "success": "reward 1",
            "expert": "a shopper that knows the goal, without a step limit",
        }

    def close(self) -> None:
        """Closes the catalogue; the next use opens it again."""
        with self._lock:
            self._shop = None

    def goal(self, item: str) -> "Goal":
        """The goal of an item; raises ValueError if there is no such item."""
        kind, _, number = item.partition("/")
        count = len(self.shop.goals)
        if kind != self.config.goals or not _NUMBER.fullmatch(number) or int(number) >= count:
            raise ValueError(
                f"unknown item {item!r}: expected {self.config.goals}/0 to "
                f"{self.config.goals}/{count - 1}"
            )
        return self.shop.goals[int(number)]


class WebShopEnv(EpisodeEnv):
    """One customer in the shop at a time; `reset(options={"item": "synthetic/7"})`.

    Actions are `search[words]` and `click[button, product or option]`; anything else has no effect.
    A purchase ends the episode; its details are the parts of the reward by the original's names,
    `reward` itself, and `r_exact`, whether the reward is 1 for exactly the goal's product.
    """

    def __init__(self, task: WebShop, step_limit: int | None) -> None:
        """An environment of `task`; a `step_limit` of None means no limit."""
        super().__init__(task, step_limit)
        self._webshop = task

    def begin(self, item: str) -> tuple[str, str]:
        """The goal's instruction and the page with the search bar."""
        self._goal = self._webshop.goal(item)
        self._page = Page()
        return self._goal.text, self._page.text(self._goal.text)

    def act(self, action: str) -> Outcome:
        """The page that the action leads to."""
        self._page = self._page.after(action, self._webshop.shop.search)
        if self._page.kind == "done":
            return self._bought(self._page.opened)
        return Outcome(observation=self._page.text(self._goal.text), score=0, details=NOT_BOUGHT)

    def _bought(self, product: "Product") -> Outcome:
        from stepagent.tasks.webshop.reward import reward

        price = product.price(self._webshop.config.goal_seed)
        worth = reward(product, price, self._page.options, self._goal, self._webshop.nouns)
        success = worth.total == 1
        exact = success and product.asin == self._goal.product.asin
        return Outcome(
            observation=self._page.done_text(worth.total),
            score=100 * worth.total,
            reward=worth.total,
            terminated=True,
            success=success,
            details={"reward": worth.total, "r_exact": exact, **worth.parts},
        )


def split_ranges(num_goals: int) -> dict[Split, range]:
    """The numbers of each split's goals.

    With fewer than 3,000 goals, the original's splits would leave too few for training, so test and
    dev get a fifth each, rounded up.
    """
    fifth = -(-num_goals // 5)
    test, dev = (NUM_TEST, NUM_DEV) if num_goals >= 2 * (NUM_TEST + NUM_DEV) else (fifth, fifth)
    return {
        "train": range(test + dev, num_goals),
        "dev": range(test, min(test + dev, num_goals)),
        "test": range(test),
    }


def _reward_of(episode: Trajectory) -> float:
    details = episode.metadata.get("details")
    reward = details.get("reward") if isinstance(details, dict) else None
    return float(reward) if isinstance(reward, int | float) else 0.0
