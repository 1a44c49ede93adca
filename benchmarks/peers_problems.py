"""Bi-level problems whose hypergradient is known to rounding: quadratics with a closed form, and hyper-cleaning of digits.

Legend: w weights (p, or p1 x p2), phi hyperparameters (q,), L(w, phi) inner loss, F(w, phi) outer loss, H = d2_ww L (p x p),
w* = argmin_w L(w, phi), v = H^-1 d_w F, hypergradient = d_phi F - (d2_phi,w L) v, all at w = w*. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
from numpy import ndarray
from scipy.special import expit, log_softmax, softmax

Arrays = dict[str, ndarray]


@dataclass(frozen=True)
class Problem:
    """One hypergradient to compute, and its right answer."""

    name: str
    kind: str  # quadratic or cleaning
    inner: Arrays
    outer: Arrays
    weights: ndarray  # w*, (p,) or (p1, p2)
    hyperparameters: ndarray  # phi, (q,)
    reference: ndarray  # d F(w*(phi), phi) / d phi, (q,)
    smallest: float  # eigenvalues of H
    largest: float

    @property
    def facts(self) -> str:
        return (f"p = {self.weights.size}, q = {self.hyperparameters.size}, "
                f"condition number of H {self.largest / self.smallest:.0f}")  # fmt: skip


def quadratic_value(parts: Any, w: Any, phi: Any) -> Any:
    """Mean over n samples of 1/2 (x.w)^2 + 1/2 (y.phi)^2 + (c.phi)(d.w), plus l.w + m.phi; numpy, torch and jax alike.

    Args:
        parts: x (n, p), y (n, q), c (n, q), d (n, p), l (p,), m (q,).
    """
    squares = 0.5 * ((parts["x"] @ w) ** 2).mean() + 0.5 * ((parts["y"] @ phi) ** 2).mean()
    return squares + ((parts["c"] @ phi) * (parts["d"] @ w)).mean() + parts["l"] @ w + parts["m"] @ phi


def quadratics(name: str, p: int, q: int, num_inner: int, num_outer: int = 1024, seed: int = 2442) -> Problem:
    """The generated problem of benchopt's benchmark_bilevel (Dagreou et al. 2022, arXiv 2201.13409), dataset `simulated`.

    As there: eigenvalues of both Hessians spread evenly in the logarithm from 0.1 to 1, those of the cross term all 0.1,
    one direction of phi without curvature, phi = -2. Differs in two ways: bases come from a QR decomposition and numbers
    from NumPy's generator; and losses stay sums over samples (every sample's Hessian has rank one), so that a pass costs
    what its number of samples says, where the original averages the matrices for full-batch methods.
    """
    generator = np.random.default_rng(seed)
    inner = _quadratic_parts(generator, num_inner, p, q)
    outer = _quadratic_parts(generator, num_outer, p, q)
    phi = np.full(q, -2.0)
    H, cross, _ = _mean_matrices(inner)
    w = -np.linalg.solve(H, inner["l"] + cross.T @ phi)
    outer_H, outer_cross, outer_phi = _mean_matrices(outer)
    v = np.linalg.solve(H, outer_H @ w + outer_cross.T @ phi + outer["l"])
    reference = outer_phi @ phi + outer_cross @ w + outer["m"] - cross @ v
    eigenvalues = np.linalg.eigvalsh(H)
    return Problem(name, "quadratic", inner, outer, w, phi, reference, eigenvalues[0], eigenvalues[-1])


def _quadratic_parts(generator: np.random.Generator, n: int, p: int, q: int) -> Arrays:
    """Samples whose mean outer products have the wanted spectra; shapes as in `quadratic_value`."""
    low, high, cross = 0.1, 1.0, 0.1
    roots_w = np.sqrt(np.geomspace(low, high, p))
    roots_phi = np.concatenate([[0.0], np.sqrt(np.geomspace(low, high, q - 1))])
    basis_w, basis_phi = _orthogonal(generator, p), _orthogonal(generator, q)
    left, right = _orthogonal(generator, q), _orthogonal(generator, p)
    shared = generator.standard_normal((n, p))
    return {
        "x": generator.standard_normal((n, p)) * roots_w @ basis_w.T,
        "y": generator.standard_normal((n, q)) * roots_phi @ basis_phi.T,
        "c": cross * shared[:, : min(p, q)] @ left[:, : min(p, q)].T,
        "d": shared @ right,
        "l": generator.standard_normal((n, p)).mean(0),
        "m": generator.standard_normal((n, q)).mean(0),
    }


def _orthogonal(generator: np.random.Generator, size: int) -> ndarray:
    return np.linalg.qr(generator.standard_normal((size, size)))[0]


def _mean_matrices(parts: Arrays) -> tuple[ndarray, ndarray, ndarray]:
    """d2_ww (p, p), d2_phi,w (q, p) and d2_phi,phi (q, q) of `quadratic_value`."""
    n = len(parts["x"])
    return parts["x"].T @ parts["x"] / n, parts["c"].T @ parts["d"] / n, parts["y"].T @ parts["y"] / n


def cleaning(name: str, wrong: float, strength: float = 1e-3, num_train: int = 1200, seed: int = 0) -> Problem:
    """Hyper-cleaning (Franceschi et al. 2017, arXiv 1703.01785, section 5.1) of scikit-learn's digits.

    Multinomial logistic regression, w (65, 10), the last feature constant. L = mean_i sigmoid(phi_i) loss_i +
    strength / 2 |w|^2 on examples of which a share `wrong` carries a wrong label; F = mean loss on clean examples.
    phi is drawn at random, so that no symmetry helps a method.
    """
    from sklearn.datasets import load_digits

    generator = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = generator.permutation(len(labels))
    features, labels = np.column_stack([images / 16, np.ones(len(images))])[order], labels[order].astype(np.int64)
    train_labels = labels[:num_train].copy()
    spoiled = generator.permutation(num_train)[: round(wrong * num_train)]
    train_labels[spoiled] = (train_labels[spoiled] + generator.integers(1, 10, len(spoiled))) % 10
    inner = {"features": features[:num_train], "labels": train_labels, "strength": np.array(strength)}
    outer = {"features": features[num_train:], "labels": labels[num_train:]}
    phi = generator.standard_normal(num_train)

    w = _newton(inner, expit(phi))
    H = _cleaning_hessian(inner, expit(phi), w)
    v = np.linalg.solve(H, _cleaning_gradient(outer, np.ones(len(outer["labels"])), w).ravel()).reshape(w.shape)
    # d2_phi,w L v: the derivative of loss_i along v, times the derivative of its weight
    along = ((inner["features"] @ v) * _residuals(inner, w)).sum(1)
    reference = -expit(phi) * expit(-phi) * along / num_train
    eigenvalues = np.linalg.eigvalsh(H)
    return Problem(name, "cleaning", inner, outer, w, phi, reference, eigenvalues[0], eigenvalues[-1])


def cleaning_value(parts: Arrays, example_weights: ndarray, w: ndarray) -> float:
    """Weighted mean loss plus, on the inner side, the penalty."""
    scores = log_softmax(parts["features"] @ w, axis=1)
    losses = -scores[np.arange(len(scores)), parts["labels"]]
    return float((example_weights * losses).mean() + 0.5 * parts.get("strength", 0.0) * (w**2).sum())


def _residuals(parts: Arrays, w: ndarray) -> ndarray:
    """d loss_i / d logits: predicted minus given label, (n, classes)."""
    residuals = softmax(parts["features"] @ w, axis=1)
    residuals[np.arange(len(residuals)), parts["labels"]] -= 1
    return residuals


def _cleaning_gradient(parts: Arrays, example_weights: ndarray, w: ndarray) -> ndarray:
    n = len(parts["labels"])
    return parts["features"].T @ (example_weights[:, None] * _residuals(parts, w)) / n + parts.get("strength", 0.0) * w


def _cleaning_hessian(parts: Arrays, example_weights: ndarray, w: ndarray) -> ndarray:
    """d2_ww L, (65 * 10, 65 * 10): mean_i weight_i x_i x_i' (x) (diag(s_i) - s_i s_i'), s_i the class probabilities."""
    features = parts["features"]
    probabilities = softmax(features @ w, axis=1)
    n, num_features = features.shape
    num_classes = probabilities.shape[1]
    H = np.empty((num_features, num_classes, num_features, num_classes))
    for a in range(num_classes):
        for b in range(num_classes):
            curvature = example_weights * probabilities[:, a] * ((a == b) - probabilities[:, b])
            H[:, a, :, b] = (features * curvature[:, None]).T @ features / n
    return H.reshape(w.size, w.size) + parts["strength"] * np.eye(w.size)


def _newton(parts: Arrays, example_weights: ndarray) -> ndarray:
    """argmin_w L by Newton's method with halved steps; the loss is strictly convex."""
    w = np.zeros((parts["features"].shape[1], 10))
    for _ in range(50):
        gradient = _cleaning_gradient(parts, example_weights, w)
        if np.abs(gradient).max() < 1e-14:
            break
        step = np.linalg.solve(_cleaning_hessian(parts, example_weights, w), gradient.ravel()).reshape(w.shape)
        length, value = 1.0, cleaning_value(parts, example_weights, w)
        while cleaning_value(parts, example_weights, w - length * step) > value and length > 1e-3:
            length /= 2
        w = w - length * step
    return w


PROBLEMS: dict[str, Callable[[str], Problem]] = {
    "quadratics 100/100, 1,024 samples": lambda name: quadratics(name, 100, 100, 1024),
    "quadratics 100/10, 32,768 samples": lambda name: quadratics(name, 100, 10, 32768),
    "digits, 50 % wrong labels": lambda name: cleaning(name, 0.5),
    "digits, 90 % wrong labels": lambda name: cleaning(name, 0.9),
}
QUICK_PROBLEMS = ("quadratics 100/100, 1,024 samples", "digits, 50 % wrong labels")


def relative_error(found: ndarray, reference: ndarray) -> float:
    """|found - reference| / |reference|; infinite where something is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found.ravel() - reference.ravel()) / np.linalg.norm(reference))
