"""Measures how well WebShop's noun rules agree with a spaCy model, on titles and on rewards.

Titles: precision and recall of the nouns, counting repetitions. Types: share of pairs with the same
`r_type`, over all pairs of a goal's product and a product on the first result page of its
instruction, and over random pairs.

    python benchmarks/webshop_nouns.py --model en_core_web_sm

Uses the data that `stepagent download webshop` prepared, or --folder. Prints one JSON line.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from stepagent.tasks.webshop.goals import Goal
from stepagent.tasks.webshop.nouns import Tagger, nouns_by_rules, tagger
from stepagent.tasks.webshop.products import Product
from stepagent.tasks.webshop.reward import reward
from stepagent.tasks.webshop.task import WebShop


def agreement(pairs: Iterable[tuple[Goal, Product]], model: Tagger) -> dict[str, float]:
    """The share of pairs with equal `r_type`, and the mean types."""
    types = [
        [reward(bought, 0.0, {}, goal, nouns).parts["r_type"] for nouns in (nouns_by_rules, model)]
        for goal, bought in pairs
    ]
    return {
        "pairs": len(types),
        "same_r_type": round(fmean(rules == spacy for rules, spacy in types), 4),
        "mean_r_type_rules": round(fmean(rules for rules, _ in types), 4),
        "mean_r_type_spacy": round(fmean(spacy for _, spacy in types), 4),
    }


def main() -> None:
    """Compares nouns, then types."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="en_core_web_sm")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--goals", type=int, default=500)
    args = parser.parse_args()
    shop = WebShop(folder=args.folder).shop
    model = tagger(args.model)
    counts = Counter[str]()
    for product in shop.products:
        rules = Counter(nouns_by_rules(product.title))
        spacy = Counter(model(product.title))
        counts["both"] += (rules & spacy).total()
        counts["rules"] += rules.total()
        counts["spacy"] += spacy.total()
    chosen = random.Random(0)
    goals = [shop.goals[number] for number in range(args.goals)]
    found = [(goal, bought) for goal in goals for bought in shop.search(goal.text)[:10]]
    products = list(shop.products)
    others = [(goal, bought) for goal in goals for bought in chosen.sample(products, 10)]
    print(
        json.dumps(
            {
                "model": args.model,
                "titles": len(shop.products),
                "precision": round(counts["both"] / counts["rules"], 4),
                "recall": round(counts["both"] / counts["spacy"], 4),
                "first_page": agreement(found, model),
                "random": agreement(others, model),
            }
        )
    )


if __name__ == "__main__":
    main()
