"""The main job: which auxiliary losses help, by how much, how surely? On a laptop or a Ray cluster, with an honest report.

python workloads/sweep.py                                     experiment=which_losses: the embedded data, two cores, 7 to 15 minutes
python workloads/sweep.py plan_only=true                      how many trials that is, and how long they take
python workloads/sweep.py sweep.budget=2h                     as many of them as two hours of device time allow
python workloads/sweep.py workload=my_losses.py:Primes        a model, losses and data of your own (docs/workloads.md)
python workloads/sweep.py experiment=msrvtt_retrieval         MSR-VTT, after workloads/prepare.py
python workloads/sweep.py experiment=digits                   MELTR against fixed weights, on retrieval
python workloads/sweep.py resume=outputs/sweeps/which_losses  go on with an interrupted sweep
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meltr_ray.storage.writers import only_writer
from workloads import cli, remote
from workloads.beginning import announced, checked_trials, planned, resumed
from workloads.ending import as_process


@dataclass
class Own:
    """Settings of this command alone."""

    plan_only: bool = False
    """Print the plan, with the device time that a few short trials promise, and end."""


def sweep(request: cli.Request) -> int:
    """Run the plan's phases, gather, report. Returns the exit code."""
    cli.check_taken(request, "sweep.py", ("name", "output", "working_folder", "resume", "cluster", "loggers"))
    settings, config, folder = resumed(request) if request.config.resume else planned(request)
    trials = checked_trials(request, settings, config)
    plan_only = request.own is not None and request.own.plan_only
    counted, timed, num_trials = announced(settings, config, folder, trials, plan_only)
    if plan_only:
        return 0
    from analysis.report import headline, write_report
    from analysis.screening import best_set_of
    from meltr_ray.cluster import sweep as phases
    from meltr_ray.cluster.interruption import Interruption
    from meltr_ray.cluster.mirror import mirrored

    twin = remote.twin_of(config, "sweeps", folder)
    remote.told(twin)
    with only_writer(folder), mirrored(folder, twin) as mirror:
        phases.start(folder, settings, config, request.command, counted)
        if mirror:
            mirror.begin()
        with (
            cli.chatter_to(folder / "log.txt") as terminal,
            Interruption(folder, config.train.grace, terminal) as interruption,
        ):
            try:
                ending = phases.run(folder, settings, config, request.command, terminal, num_trials, best_set_of, interruption, timed)
                report = None if interruption.over else write_report(folder)
            except KeyboardInterrupt:  # a second signal, or the end of the grace
                ending, report = phases.Ending.INTERRUPTED, None
    print(f"{headline(folder)}\nreport: {report}" if report else unreported(folder))
    if ending is phases.Ending.BUDGET:
        more = f"python workloads/sweep.py resume={remote.place_of(folder, twin)} sweep.budget=<more>"
        print(cli.as_called(f"sweep.budget={config.sweep.budget} is used up; to continue with a larger budget: {more}"))
    if ending is phases.Ending.INTERRUPTED:
        print(cli.as_called(f"interrupted; go on with: python workloads/sweep.py resume={remote.place_of(folder, twin)}"))
    return interruption.code if ending is phases.Ending.INTERRUPTED else 0


def unreported(folder: Path) -> str:
    """What is said where the time to end was over before the report was written."""
    old = folder / "report.html"
    return "the report was not written; resuming the sweep writes it" + (f", and {old} is an earlier one" if old.exists() else "")


def main() -> None:
    cli.main(sweep, __doc__, own=Own, experiment="which_losses")


if __name__ == "__main__":
    as_process(main)
