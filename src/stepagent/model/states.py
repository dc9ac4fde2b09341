"""The states of a trajectory as nodes of a prefix tree."""

from stepagent.model.prefix_tree import ROOT, PrefixTree
from stepagent.rendering.renderer import RenderedTrajectory


def add_states(tree: PrefixTree, played: RenderedTrajectory) -> list[int]:
    """Adds all states of a trajectory to the tree; returns the last node of each state."""
    node, states = ROOT, []
    for addition in played.additions:
        node = tree.add(node, addition)[-1]
        states.append(tree.add(node, played.ask)[-1] if played.ask else node)
    return states
