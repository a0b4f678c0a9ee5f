import numpy as np
import pytest
import scipy.sparse as sp

from miniplm.proxy.ridge import NUM_FOLDS, fit_ridge


def make_problem(num=200, num_features=40, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    features = sp.random(num, num_features, density=0.2, format="csr", random_state=rng)
    features = sp.diags(1 / np.maximum(np.sqrt(features.multiply(features).sum(axis=1)).A1, 1e-9)) @ features
    values = features @ rng.normal(size=num_features) + 2 + noise * rng.normal(size=num)
    return features.tocsr(), values, rng.integers(0, NUM_FOLDS, num)


def solve(features, values, penalty):
    dense = features.toarray()
    return np.linalg.solve(dense.T @ dense + penalty * np.eye(dense.shape[1]), dense.T @ (values - values.mean()))


def test_weights_are_those_of_the_normal_equations():
    features, values, folds = make_problem()
    fitted = fit_ridge(features, values, folds)
    assert fitted.weights == pytest.approx(solve(features, values, fitted.penalty), abs=1e-3)
    assert fitted.bias == pytest.approx(values.mean())


def test_held_out_values_are_those_of_fits_without_them():
    features, values, folds = make_problem()
    fitted = fit_ridge(features, values, folds)
    for fold in range(NUM_FOLDS):
        rest = folds != fold
        expected = features[~rest] @ solve(features[rest], values[rest], fitted.penalty) + values[rest].mean()
        assert fitted.held_out[~rest] == pytest.approx(expected, abs=1e-3)


def test_the_penalty_is_strong_where_there_is_nothing_to_learn():
    features, values, folds = make_problem(noise=0.05)
    assert fit_ridge(features, values, folds).penalty <= 0.1
    noise = np.random.default_rng(1).normal(size=len(values))
    assert fit_ridge(features, noise, folds).penalty >= 3


def test_the_same_values_give_the_same_weights():
    first, second = (fit_ridge(*make_problem()) for _ in range(2))
    assert first.weights.tobytes() == second.weights.tobytes()
