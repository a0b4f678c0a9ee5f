"""How held-out loss falls with training compute: a law fitted to checkpoints, what it says of longer training, and savings by it.

Shapes: N checkpoints; the constants are (3,): ln A at the centre, ln alpha, ln L_inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miniplm.errors import ScalingError

NUM_CONSTANTS = 3
MIN_POINTS = NUM_CONSTANTS + 1
INTERVAL = (0.025, 0.975)

# Hoffmann et al. (arXiv 2203.15556, appendix D.3): larger errors of ln(loss) than this weigh linearly.
_HUBER_DELTA = 1e-3
# Nine starts: the search is not convex, and from one alone it may end where the floor or the fall explains nothing.
_START_EXPONENTS = (0.1, 0.3, 0.8)
_START_FLOOR_SHARES = (0.3, 0.7, 0.95)
_MAX_ITERATIONS = 500
# A sample starts at the fit. What takes longer from there is a search in a flat valley, where the constants are not determined.
_MAX_SAMPLE_ITERATIONS = 60
# Beyond it the law is a step between two checkpoints; the search need not go there.
_MAX_LOG_EXPONENT = math.log(20.0)

_FLOOR_BOUND_SHARE = 1e-3
_MAX_FLOOR_WIDTH_SHARE = 0.1
_MAX_EXPONENT = 3.0
_MAX_EXPONENT_FACTOR = 2.0
_MIN_FLOPS_SPAN = 4.0
_MANY_POINTS = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScalingLaw:
    """L(C) = L_inf + A_c / C^alpha_c (arXiv 2410.17215, scaling curves): L in nats a token, C in training FLOPs.

    `log_amplitude` is ln A_c, as A_c alone may be beyond what a float holds.
    """

    log_amplitude: float
    exponent: float
    loss_floor: float

    @classmethod
    def of(cls, amplitude: float, exponent: float, loss_floor: float) -> ScalingLaw:
        """The law with the constants (A_c, alpha_c, L_inf), in the order in which they are published."""
        return cls(math.log(amplitude), exponent, loss_floor)

    @property
    def amplitude(self) -> float:
        return math.exp(self.log_amplitude) if self.log_amplitude < math.log(1e300) else math.inf

    def predict_loss(self, flops: float) -> float:
        """L(C) in nats a token."""
        return self.loss_floor + math.exp(self.log_amplitude - self.exponent * math.log(flops))

    def find_flops(self, loss: float) -> float:
        """The C with L(C) = loss: (A_c / (loss - L_inf))^(1 / alpha_c); infinite where the law never comes down to `loss`."""
        if loss <= self.loss_floor:
            return math.inf
        log_flops = (self.log_amplitude - math.log(loss - self.loss_floor)) / self.exponent
        return math.exp(log_flops) if log_flops < math.log(1e300) else math.inf


@dataclass(frozen=True)
class ScalingFit:
    """A law fitted to `num_points` checkpoints between `min_flops` and `max_flops`, with the laws of as many bootstrap samples.

    `residual_spread` is the root mean square of ln(measured / fitted). `doubts` say in words why the constants, or
    anything far beyond the measured FLOPs, should not be believed; none is no proof that they should.
    """

    law: ScalingLaw
    samples: tuple[ScalingLaw, ...]
    num_points: int
    min_flops: float
    max_flops: float
    residual_spread: float
    doubts: tuple[str, ...]

    def find_interval(self, quantity: Callable[[ScalingLaw], float]) -> tuple[float, float]:
        """The 95 % percentile interval of any quantity of the law over the bootstrap samples."""
        return percentile_interval([quantity(sample) for sample in self.samples])


def fit_scaling_law(flops: Sequence[float], losses: Sequence[float], num_samples: int = 200, seed: int = 0) -> ScalingFit:
    """Fits L(C) = L_inf + A_c / C^alpha_c to the held-out losses (nats a token) of checkpoints.

        minimise  sum_i Huber_d(ln L(C_i) - ln loss_i),  d = 1e-3,  over ln A_c, ln alpha_c, ln L_inf

    (Hoffmann et al., arXiv 2203.15556, appendix D.3), by L-BFGS from nine starts; the same points give the same fit in
    whichever order they come. Intervals are of a residual bootstrap: the residuals, centred and scaled by
    sqrt(n / (n - 3)), are drawn with replacement, put on the fitted curve, and fitted again, `num_samples` times by
    `seed`. Neighbouring checkpoints of one training err alike, and another seed of training gives another curve;
    neither is in these intervals, so they are too narrow rather than too wide.

    Raises `ScalingError` where the points cannot tell three constants: see `explain_unfit`.
    """
    reason = explain_unfit(flops, losses)
    if reason is not None:
        raise ScalingError(reason)
    order = np.lexsort((np.asarray(losses, np.float64), np.asarray(flops, np.float64)))
    log_flops, log_losses = np.log(np.asarray(flops, np.float64)[order]), np.log(np.asarray(losses, np.float64)[order])
    # ln A at the mean of ln C and not at C = 1, some 40 powers of e away: there it and the exponent could hardly be told apart.
    centre = float(log_flops.mean())
    place = log_flops - centre
    best = min(
        (_minimise(place, log_losses, start, _MAX_ITERATIONS) for start in _list_starts(log_losses)), key=lambda end: end[1]
    )[0]
    fitted = _predict(best, place)[0]
    residuals = log_losses - fitted
    num_points = len(place)
    spread = math.sqrt(float(np.mean(residuals**2)))
    scaled = (residuals - residuals.mean()) * math.sqrt(num_points / (num_points - NUM_CONSTANTS))
    random = np.random.Generator(np.random.PCG64(seed))
    ends = [
        _minimise(place, fitted + random.choice(scaled, num_points), best, _MAX_SAMPLE_ITERATIONS)[0] for _ in range(num_samples)
    ]
    law, samples = _make_law(best, centre), tuple(_make_law(end, centre) for end in ends)
    bounds = (math.exp(float(log_flops[0])), math.exp(float(log_flops[-1])))
    doubts = _find_doubts(law, samples, num_points, bounds, math.exp(float(log_losses[-1])))
    return ScalingFit(law, samples, num_points, *bounds, spread, doubts)


def explain_unfit(flops: Sequence[float], losses: Sequence[float]) -> str | None:
    """Why no law can be fitted to these points, in words for the user; None where one can."""
    if len(flops) != len(losses):
        return f"{len(flops)} numbers of FLOPs and {len(losses)} losses are given; each checkpoint has one of each"
    bad = [value for value in (*flops, *losses) if not (math.isfinite(value) and value > 0)]
    if bad:
        return f"FLOPs and losses must be finite and above 0; one is {bad[0]}"
    num_distinct = len(set(flops))
    if num_distinct < MIN_POINTS:
        return (
            f"the held-out losses of {num_distinct} checkpoints are known, a fit of three constants needs at least {MIN_POINTS}; set "
            "training.milestone_every_steps to a tenth of the steps or less, train, and run `miniplm evaluate`"
        )
    slope = float(np.polyfit(np.log(np.asarray(flops)), np.log(np.asarray(losses)), 1)[0])
    if slope >= 0:
        return (
            f"the held-out loss does not fall with training: from {losses[int(np.argmin(flops))]:.3f} to "
            f"{losses[int(np.argmax(flops))]:.3f} nats a token over {num_distinct} checkpoints"
        )
    return None


def compute_saving(baseline: ScalingLaw, student_flops: float, student_loss: float) -> float:
    """C_baseline / C_student at equal loss: how many times the student's FLOPs the baseline needs to come to the student's loss.

    Above 1 the student saves compute; infinite where the baseline never gets there by its fit. The published constants
    (arXiv 2410.17215, 500M at 50 B tokens) give 1.97 for MiniPLM against Vanilla KD where 2.2 is published. They cannot
    give it more closely: they are rounded, and with MiniPLM's alpha_c of 0.521 instead of 0.52 it is 2.2.
    """
    return baseline.find_flops(student_loss) / student_flops


def data_saving(saving: float, flops_per_token: float, baseline_flops_per_token: float) -> float:
    """tokens_baseline / tokens_student at equal loss, of a compute saving and what a token costs each of the two in training.

    The published 2.4 is of data-limited trainings, whose constants are not published: it does not follow from those that are.
    """
    return saving * flops_per_token / baseline_flops_per_token


def find_saving_interval(baseline: ScalingFit, student: ScalingFit, flops: float) -> tuple[float, float]:
    """The 95 % interval of the compute saving at the student's FLOPs, both fits drawn from their bootstrap samples."""
    pairs = zip(baseline.samples, student.samples, strict=True)
    return percentile_interval([compute_saving(other, flops, own.predict_loss(flops)) for other, own in pairs])


def percentile_interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of values; no mean is taken of neighbours, as some may be infinite."""
    low, high = np.quantile(np.asarray(values, np.float64), INTERVAL, method="inverted_cdf")
    return float(low), float(high)


def _list_starts(log_losses: Floats) -> list[Floats]:
    """Several exponents and floors, each with the amplitude that meets the mean loss, as constants (3,); `log_losses` are (N,)."""
    mean, lowest = float(np.exp(log_losses).mean()), float(np.exp(log_losses).min())
    return [
        np.array([math.log(mean - share * lowest), math.log(exponent), math.log(share * lowest)])
        for exponent in _START_EXPONENTS
        for share in _START_FLOOR_SHARES
    ]


def _predict(constants: Floats, place: Floats) -> tuple[Floats, Floats]:
    """ln L (N,) and its derivatives (3, N) by the constants (3,), at `place` (N,), which is ln C from the centre."""
    is_free = constants[1] < _MAX_LOG_EXPONENT
    exponent = math.exp(min(float(constants[1]), _MAX_LOG_EXPONENT))
    log_fall = constants[0] - exponent * place
    log_loss = np.logaddexp(log_fall, constants[2])
    share = np.exp(log_fall - log_loss)
    return log_loss, np.stack([share, -exponent * place * share * is_free, np.exp(constants[2] - log_loss)])


def _minimise(place: Floats, log_losses: Floats, start: Floats, max_iterations: int) -> tuple[Floats, float]:
    """The constants (3,) at the end of a search from `start` (3,), and the Huber loss there in units of delta squared; the rest is (N,)."""
    from scipy.optimize import minimize

    # In units in which the start's curvature is the same in all directions; the three constants are far from independent.
    slopes = _predict(start, place)[1]
    curvature = slopes @ slopes.T
    values, vectors = np.linalg.eigh(curvature + 1e-8 * np.trace(curvature) * np.eye(NUM_CONSTANTS))
    turn = vectors / np.sqrt(values)

    def objective(step: Floats) -> tuple[float, Floats]:  # (3,), both the step and the gradient
        predicted, slopes = _predict(start + turn @ step, place)
        errors = (predicted - log_losses) / _HUBER_DELTA
        clipped = np.clip(errors, -1.0, 1.0)
        return float(np.sum(clipped * (errors - clipped / 2))), turn.T @ (slopes @ clipped) / _HUBER_DELTA

    end = minimize(
        objective,
        np.zeros(NUM_CONSTANTS),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "ftol": 1e-9, "gtol": 1e-8},
    )
    return start + turn @ end.x, float(end.fun)


def _make_law(constants: Floats, centre: float) -> ScalingLaw:
    """The law of constants (3,) that are of FLOPs from the centre."""
    exponent = math.exp(min(float(constants[1]), _MAX_LOG_EXPONENT))
    return ScalingLaw(float(constants[0]) + exponent * centre, exponent, math.exp(float(constants[2])))


def _find_doubts(
    law: ScalingLaw, samples: Sequence[ScalingLaw], num_points: int, bounds: tuple[float, float], last_loss: float
) -> tuple[str, ...]:
    doubts = []
    if num_points < _MANY_POINTS:
        doubts.append(f"there are only {num_points} checkpoints: intervals are rough below {_MANY_POINTS}")
    if bounds[1] / bounds[0] < _MIN_FLOPS_SPAN:
        doubts.append(
            f"the checkpoints span a factor of only {bounds[1] / bounds[0]:.2g} in FLOPs; {_MIN_FLOPS_SPAN:g} is the least"
        )
    if law.loss_floor < _FLOOR_BOUND_SHARE * last_loss:
        doubts.append("no floor is seen: L_inf came out at its bound, 0")
    if law.exponent > _MAX_EXPONENT:
        doubts.append(f"alpha_c came out as {law.exponent:.3g}: the loss falls in one step, not by a power of the FLOPs")
    if len(samples) > 1:
        low, high = percentile_interval([sample.loss_floor for sample in samples])
        if high - low > _MAX_FLOOR_WIDTH_SHARE * last_loss:
            doubts.append(
                f"L_inf is not determined: its interval is {high - low:.2f} nats a token wide, over "
                f"{_MAX_FLOOR_WIDTH_SHARE:.0%} of the last loss"
            )
        low, high = percentile_interval([sample.exponent for sample in samples])
        if high > _MAX_EXPONENT_FACTOR * low:
            doubts.append(f"alpha_c is not determined: its interval reaches from {low:.3g} to {high:.3g}")
    return tuple(doubts)
