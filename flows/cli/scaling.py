"""`scaling`: how held-out loss falls with training compute, and what that saves. It looks, and changes nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flows.cli.options import Asked, on_a_run, print_json
from flows.cli.terminal import PlainConsole

if TYPE_CHECKING:
    from miniplm.evaluation.curves import Saving, StudentCurve


@on_a_run
def scaling(asked: Asked) -> None:
    """Fit each student's held-out loss to its training compute, extrapolate it, and say what it saves against the baseline.

    The law is **L(C) = L_inf + A_c / C^alpha_c**: L in nats a token, C in training FLOPs, 6 N a token for a student of N
    parameters, and 2 N_teacher more where a teacher runs along (vanilla-kd). What is spent once for all students,
    scoring and generated text, is not counted.

    **Checkpoints.** The fit needs at least 4 of a student, 8 or more to be of use: set `training.milestone_every_steps`
    to a twentieth of the steps, train, and run `miniplm evaluate`. Those of the warm-up are left out. In the middle of a
    training the learning rate is still high, so a curve compares students of one schedule; it does not tell what a
    shorter training would have reached.

    **Savings.** Compute: how many times a student's FLOPs the `pretrain` student of the same architecture needs to come to
    the same loss; data: the same in tokens. Above 1 the student saves. "never" says that the baseline's fit stays above that loss.

    Brackets hold 95 % intervals of a bootstrap over the residuals of the fit: another seed of training is not in
    them. How far a number lies beyond what was measured stands beside it; a hundredfold is a guess.
    `evaluation.extrapolate_tokens` says for how many tokens the loss is told.
    """
    from miniplm.evaluation.curves import describe_curve, gather_curves
    from miniplm.run.status import provide_record
    from miniplm.storage.root import Storage

    config = asked.resolve_config()
    root = Storage(config.storage)
    # The record keeps how the students were trained; what is asked of the fits is the configuration's.
    record = provide_record(root, config)
    evaluation = config.evaluation.model_dump(mode="json")
    curves = gather_curves(root, record.model_copy(update={"config": {**record.config, "evaluation": evaluation}}))
    if asked.as_json:
        print_json(
            {
                "run": record.run_name,
                "heldout_text": record.name_text(),
                "students": {name: describe_curve(curve) for name, curve in curves.items()},
            }
        )
    else:
        print_curves(record.run_name, curves, record.name_text())


def print_curves(run_name: str, curves: dict[str, StudentCurve], text: str = "") -> None:
    """Constants, losses and savings of each student that has a fit, and what is to be said against them."""
    from flows.cli.tables import make_table

    console = PlainConsole()
    fitted = {name: curve for name, curve in curves.items() if curve.fit is not None}
    if fitted:
        tokens = [extrapolation.num_tokens for extrapolation in next(iter(fitted.values())).extrapolations]
        table = make_table(
            f"Held-out loss by training FLOPs, run {run_name}: L(C) = L_inf + A_c / C^alpha_c",
            "student",
            "L_inf",
            "A_c",
            "alpha_c",
            "points",
        )
        losses = make_table(
            "Loss, nats a token (how far beyond the last checkpoint)",
            "student",
            "measured",
            *(f"at {format_tokens(n)}" for n in tokens),
        )
        for name, curve in fitted.items():
            assert curve.fit is not None
            fit = curve.fit
            table.add_row(
                name,
                f"{fit.law.loss_floor:.3f} {_bracket(fit.find_interval(lambda law: law.loss_floor), '.3f')}",
                f"{fit.law.amplitude:.3g} {_bracket(fit.find_interval(lambda law: law.amplitude), '.2g')}",
                f"{fit.law.exponent:.3f} {_bracket(fit.find_interval(lambda law: law.exponent), '.3f')}",
                str(fit.num_points),
            )
            losses.add_row(
                name,
                f"{curve.points[-1].loss:.3f}",
                *(f"{at.loss:.3f} {_bracket(at.interval, '.3f')} ({at.times_beyond:,.3g}x)" for at in curve.extrapolations),
            )
        console.print(table)
        if text:
            console.print(f"losses on {text}", style="dim", soft_wrap=True)
        console.print(losses)
    saving = {name: curve.saving for name, curve in curves.items() if curve.saving is not None}
    if saving:
        table = make_table("Savings at equal loss", "student", "baseline", "at loss", "compute", "data", "baseline followed")
        for name, saved in saving.items():
            table.add_row(name, *_saving_cells(saved))
        console.print(table)
    for name, curve in curves.items():
        for note in (curve.no_fit, *(curve.fit.doubts if curve.fit else ()), curve.no_saving):
            if note is not None:
                console.print(f"{name}: {note}", style="dim", soft_wrap=True)


def format_tokens(num_tokens: float) -> str:
    """A number of tokens in words: 1 T tokens."""
    for divisor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if num_tokens >= divisor:
            return f"{num_tokens / divisor:.4g} {letter} tokens"
    return f"{num_tokens:,.0f} tokens"


def _saving_cells(saving: Saving) -> list[str]:
    beyond = saving.times_beyond
    followed = "never there" if math.isinf(beyond) else "within what was measured" if beyond <= 1 else f"{beyond:.3g}x beyond"
    return [
        saving.baseline,
        f"{saving.loss:.3f}",
        f"{_times(saving.compute)} {_bracket(saving.compute_interval, '.3g')}",
        f"{_times(saving.data)} {_bracket(saving.data_interval, '.3g')}",
        followed,
    ]


def _times(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g}x"


def _bracket(interval: tuple[float, float], style: str) -> str:
    return "[" + ", ".join("never" if math.isinf(value) else f"{value:{style}}" for value in interval) + "]"
