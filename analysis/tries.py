"""What every try of a loss showed, over several tasks, as one figure: `combiner.name=tryout`.

    python -m analysis.tries docs/tryout_effects.png outputs/sweeps/tryout outputs/sweeps/tryout_mosi ...

A panel a sweep, a row a loss, a dot a seed: by how much the try of the loss lowered the held-out primary loss, filled where the run then trained with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matplotlib.figure import Figure

from analysis import plots
from analysis.drawing import draw
from analysis.records import Sweep, load_all, losses_of
from analysis.tables import slopes
from meltr_ray.errors import check
from meltr_ray.results.columns import EFFECT


def panel(axis, sweep: Sweep, name: str) -> None:
    """Raises ConfigError: `ours` has tried nothing."""
    _, genuine, planted = losses_of(sweep)
    effects, trained = slopes(sweep, family=EFFECT).groupby("seed").first(), slopes(sweep).groupby("seed").last()
    tried = [loss for loss in [*genuine, *planted] if loss in effects and effects[loss].notna().any()]
    check(len(tried) > 0, "sweep", name, f"has no try of a loss by {sweep.ours}; name a sweep whose `ours` is tryout")
    for row, loss in enumerate(reversed(tried)):
        on = trained[loss].reindex(effects.index) > 0
        for chosen, face in ((on, plots.OKABE_ITO[0]), (~on, "none")):
            axis.plot(effects[loss][chosen], [row] * int(chosen.sum()), "o", mfc=face, mec=plots.OKABE_ITO[0], ms=6, alpha=0.8)
    axis.axvline(0, color="black", lw=1)
    axis.set_yticks(range(len(tried)), [f"{loss} (control)" if loss in planted else loss for loss in reversed(tried)])
    axis.set_ylim(-0.6, len(tried) - 0.4)
    plots._title(axis, name)


def figure(sweeps: dict[str, Sweep]) -> Figure:
    drawn, axes = plots._figure(9, 0.9 + 1.9 * len(sweeps), rows=len(sweeps))
    for axis, (name, sweep) in zip(axes, sweeps.items()):
        panel(axis, sweep, name)
    drawn.supxlabel("The held-out primary loss falls by; filled: the run trained with the loss", fontsize="medium")
    return drawn


def main(arguments: Sequence[str]) -> int:
    return draw(__doc__, arguments, lambda folders: figure(load_all(folders)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
