"""Ridge regression of the baselines."""

import numpy as np

from knockscreen.score.ridge import PENALTIES, ridge_fit


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def leave_one_out(features, outcome, weights, penalty):
    """Predict each row by a ridge regression of the others, solved outright."""
    x = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    root = np.sqrt(weights / weights.mean())[:, None]
    predicted = np.zeros_like(outcome)
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        a, b = (x * root)[rest], (outcome * root)[rest]
        free = penalty * np.diag([0.0, *([1.0] * features.shape[1])])
        predicted[i] = x[i] @ np.linalg.solve(a.T @ a + free, a.T @ b)
    return predicted, float((((outcome - predicted) * root) ** 2).sum())


def test_leave_one_out_predictions_are_those_of_refitting_without_each_row():
    features, weights = noise(12, 3), np.arange(1.0, 13)
    outcome = features @ noise(3, 4, seed=1) + 0.5 + noise(12, 4, seed=2)
    beta, predicted = ridge_fit(features, outcome, weights)
    brute = [leave_one_out(features, outcome, weights, penalty) for penalty in PENALTIES]
    expected, _ = min(brute, key=lambda pair: pair[1])
    np.testing.assert_allclose(predicted, expected, rtol=1e-6)
    assert beta.shape == (4, 4)
