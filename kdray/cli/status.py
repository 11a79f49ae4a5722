"""`kdray status`: how far a run or a sweep is, and how it ended. Neither torch nor Ray is imported."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import exit_on_error
from kdray.utils.files import expand, is_address, shown

if TYPE_CHECKING:
    from kdray.runs.status import Status

_EXIT_CODES = {"finished": 0, "running": 3}  # any other state: 1


def status_command(
    where: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, the address of one, or the folder of a sweep.")
    ],
) -> None:
    """Say how far a run is, or how it ended. Exit code: 0 finished, 1 failed, stopped or killed, 3 running, 2 none."""
    with exit_on_error():
        from kdray.runs.directory import RunDirectory
        from kdray.runs.status import read_status

        if not is_address(where) and (expand(where) / "sweep.yaml").is_file():
            state, lines = _of_sweep(where)
        else:
            if is_address(where):
                from kdray.runs.remote import read_status_at

                status = read_status_at(where)
            else:
                status = read_status(RunDirectory(where))
            state, lines = status.state, _of_run(status, where)
    for name, value in lines:
        print(f"{name:<10}{value}")
    raise typer.Exit(_EXIT_CODES.get(state, 1))


def _of_run(status: "Status", where: str) -> list[tuple[str, str]]:
    lines = [("state", status.state + (f" (exit code {status.exit_code})" if status.exit_code is not None else ""))]
    if status.cause:
        lines += [("cause", shown(status.cause))]
    at = "" if status.round is None else f"round {status.round} of {status.rounds}, "
    lines += [("phase", f"{at}{status.phase}")]
    lines += [("queries", f"{status.queries:,} of {status.budget:,}; {status.evaluation_queries:,} for evaluation")]
    if status.student_accuracy is not None:
        lines += [("accuracy", f"{status.student_accuracy:.2%}")]
    elif status.agreement is not None:
        lines += [("agreement", f"{status.agreement:.2%}")]
    if status.relative_entropy is not None:
        lines += [("entropy", f"{status.relative_entropy:.2f} of 1, where 1 is an answer of each class equally often")]
    lines += [("started", status.started), ("updated", status.updated)]
    lines += [("process", f"{status.pid} on {status.host}")]
    if status.state not in ("finished", "running"):
        lines += [("go on", f"kdray resume {shown(where)}")]
    return lines


def _of_sweep(where: str) -> tuple[str, list[tuple[str, str]]]:
    """State of a sweep, and its trials by state. It is finished when it has seen all its trials to their end, and none
    failed; a page of it may be written at any time. Of a tuner of the user's own only the trials that began are known.
    """
    from kdray.config.files import read_yaml
    from kdray.runs.status import is_locked
    from kdray.sweeps.folder import SweepFolder, TrialFolder

    folder = SweepFolder(where)
    entries = [path.parent for path in folder.path.glob("trials/*/trial.json")]
    counts = Counter(TrialFolder(entry).state for entry in entries)
    state = "stopped or killed"
    if is_locked(folder.path / ".lock"):
        state = "running"
    elif counts and not counts["running"] and (folder.ended.exists() or read_yaml(folder.config).get("space") == {}):
        state = "failed" if counts["failed"] else "finished"
    lines = [("state", state)]
    lines += [("trials", ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none has begun")]
    if state not in ("finished", "running"):
        lines += [("go on", f"kdray sweep --resume {shown(where)}")]
    return state, lines
