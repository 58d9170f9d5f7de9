"""The velocity network: sizes, its start, and what each condition code means."""

import pytest
import torch

from knockscreen.flow import interpolate, rk4
from knockscreen.models.vae import count_parameters
from knockscreen.models.velocity import (
    FLOW_SIZES,
    UNSEEN,
    Condition,
    ContextGaussians,
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


def with_gaussians(*, trained: bool) -> VelocityNet:
    """A network whose contexts have the means and variances of MADE."""
    torch.manual_seed(0)
    settings = VelocitySettings(FLOW_SIZES["tiny"], 8, 4, (2, 3), 5, gaussian=True)
    net = VelocityNet(settings)
    if trained:
        for parameter in net.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    net.gaussians.fit(*MADE, prior=0)
    return net.eval()


CODES = torch.cartesian_prod(torch.arange(2), torch.arange(3)).repeat(3000, 1)  # (18000, 2)
MADE = (
    (CODES[:, :1, None] - 0.5)
    + (0.2 + 0.3 * CODES[:, 1:, None])
    * torch.randn(18_000, 8, 4, generator=torch.Generator().manual_seed(3)),
    CODES,
)
"""Latents whose mean is set by the first factor, and whose spread by the second."""


def test_combinations_of_levels_and_nulls_have_their_own_mean_and_variance():
    gaussians = with_gaussians(trained=False).gaussians
    for codes, mean, variance in (((1, 0), 0.5, 0.04), ((0, 2), -0.5, 0.64)):
        row = gaussians.index(torch.tensor([codes]))
        torch.testing.assert_close(
            gaussians.mean[row].mean(), torch.tensor(mean), atol=0.01, rtol=0
        )
        torch.testing.assert_close(
            gaussians.variance[row].mean(), torch.tensor(variance), atol=0.02, rtol=0
        )
    rows = gaussians.index(torch.cartesian_prod(torch.arange(3), torch.arange(4)))
    assert rows.tolist() == list(range(12))
    nothing = gaussians.index(torch.tensor([[2, 3]]))  # both null: all cells
    torch.testing.assert_close(gaussians.mean[nothing][0], MADE[0].mean(0), atol=1e-4, rtol=0)


def test_combination_that_few_cells_have_is_drawn_to_a_standard_normal():
    gaussians = ContextGaussians((1,), 1, 1)
    gaussians.fit(torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[0], [0]]), prior=2)
    assert gaussians.mean.flatten().tolist() == [1.0, 1.0]
    assert gaussians.variance.flatten().tolist() == [2.0, 2.0]  # (1 + 9 + 2) / 4 - 1


def test_new_network_carries_noise_to_the_gaussian_of_its_context():
    net = with_gaussians(trained=False)
    codes, code = torch.tensor([[1, 2]]), net.gaussians.index(torch.tensor([[1, 2]]))
    of = Condition(codes, torch.tensor([1]))
    made = rk4(lambda x, t: net(x, t, of), X, 40)
    expected = net.gaussians.mean[code] + net.gaussians.variance[code].sqrt() * X
    torch.testing.assert_close(made, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_start_is_the_regression_of_the_velocity_on_the_point(t):
    net, inside = with_gaussians(trained=False), (CODES[:, 0] == 1) & (CODES[:, 1] == 2)
    x1 = MADE[0][inside]
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    times = torch.full((len(x1),), t)
    xt, velocity = interpolate(x0, x1, times)
    given = Condition(CODES[inside], torch.ones(len(x1), dtype=torch.int64))
    with torch.no_grad():
        error = velocity - net(xt, times, given)
    assert abs(float(error.mean())) < 0.01
    assert abs(float((error * xt).mean())) < 0.02  # nothing linear is left in it


def test_network_reads_and_writes_in_units_of_standard_normal_latents():
    net, t = with_gaussians(trained=True), 0.8
    scale = (t**2 + (1 - t) ** 2) ** -0.5
    known = net.gaussians(X, torch.tensor(t), torch.tensor([[0, 0]]))
    time = torch.tensor([t])
    expected = known + scale * net.learned(scale * X, time, condition())
    torch.testing.assert_close(net(X, time, condition()), expected)


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
