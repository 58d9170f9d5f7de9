"""The velocity network: sizes, its start, and what each condition code means."""

import pytest
import torch

from knockscreen.models.vae import count_parameters
from knockscreen.models.velocity import (
    FLOW_SIZES,
    UNSEEN,
    Condition,
    VelocityNet,
    VelocitySettings,
)


def make(features: int = 0, *, trained: bool = True) -> VelocityNet:
    torch.manual_seed(0)
    net = VelocityNet(VelocitySettings(FLOW_SIZES["tiny"], 8, 4, (2, 3), 5, features))
    if trained:  # the start is zero, so turn every parameter a little
        for parameter in net.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def condition(contexts=(0, 0), target=1, features=None) -> Condition:
    given = None if features is None else torch.tensor([features])
    return Condition(torch.tensor([contexts]), torch.tensor([target]), given)


X = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.3])


def test_released_size_has_as_many_parameters_as_the_reference():
    with torch.device("meta"):
        net = VelocityNet(VelocitySettings(FLOW_SIZES["cd4"], 256, 16, (4, 3), 10_571))
    assert count_parameters(net) == 44_289_536


def test_new_network_moves_nothing():
    net = make(trained=False)
    assert (net(X, T, condition()) == 0).all()


@pytest.mark.parametrize(
    "other",
    [
        condition(contexts=(1, 0)),
        condition(contexts=(0, 2)),
        condition(contexts=(2, 0)),  # the first factor's null
        condition(target=2),
        condition(target=5),  # the target's null
    ],
)
def test_every_part_of_the_condition_counts(other):
    net = make()
    assert (net(X, T, other) - net(X, T, condition())).abs().max() > 1e-4


def test_time_counts_and_tokens_are_told_apart_by_their_place():
    net = make()
    assert (net(X, T + 0.5, condition()) - net(X, T, condition())).abs().max() > 1e-4
    same = net(torch.ones(1, 8, 4), T, condition())
    assert (same[0, 0] - same[0, 1]).abs().max() > 1e-4


def test_tokens_of_a_cell_see_each_other():
    other = X.clone()
    other[0, 5] += 1
    net = make()
    moved = (net(other, T, condition()) - net(X, T, condition()))[0]
    assert moved[0].abs().max() > 1e-4


def test_rows_do_not_see_each_other():
    net = make()
    both = Condition(torch.tensor([[0, 0], [1, 2]]), torch.tensor([1, 3]))
    x = torch.cat([X, -X])
    together = net(x, T.expand(2), both)
    for row in range(2):
        alone = net(x[row : row + 1], T, both.rows(slice(row, row + 1)))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_unseen_target_needs_features():
    with pytest.raises(ValueError, match="trained without gene features"):
        make()(X, T, condition(target=UNSEEN))


def test_unseen_targets_differ_by_their_features_alone():
    net = make(features=2)
    one = net(X, T, condition(target=UNSEEN, features=[1.0, 0.0]))
    other = net(X, T, condition(target=UNSEEN, features=[0.0, 1.0]))
    assert (one - other).abs().max() > 1e-4
    net.target.weight.data.zero_()
    torch.testing.assert_close(net(X, T, condition(target=UNSEEN, features=[1.0, 0.0])), one)


def test_position_table_is_fixed():
    net = make()
    assert not net.position.requires_grad
    assert "position" in net.state_dict()
