"""Parameter updates by hand."""

import pytest
import torch
from torch import nn

from fakes import random_policy
from stepagent.backends.training import OptimizerConfig, Updater


def test_each_set_of_parameters_is_clipped_by_its_own_norm() -> None:
    policy, head, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    updater = Updater([policy, frozen], OptimizerConfig(learning_rate=0.1), 1, apart=[head])
    # Gradients (3, 4) and (0, 100): of norm 5 and 100.
    loss = 3 * policy[0] + 4 * policy[1] + 100 * head[1] + 7 * frozen.sum()
    facts = updater.update(random_policy().layers, lambda: [(loss, {"loss": 1.5})])
    assert facts == {"loss": 1.5, "learning_rate": 0.1, "grad_norm": pytest.approx(5)}
    # The first moment is a tenth of the gradient that was applied.
    moments = [10 * updater.optimizer.state[p]["exp_avg"] for p in (policy, head)]
    torch.testing.assert_close(moments[0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(moments[1], torch.tensor([0.0, 1.0]))
    assert frozen.tolist() == [1, 1]
