"""`kdray sweep`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import Overrides, exit_on_error, output_width
from kdray.errors import ConfigError, Halted
from kdray.utils.files import expand, shown

if TYPE_CHECKING:
    from kdray.sweeps.outcome import SweepResult


def sweep_command(
    config: Annotated[Path | None, typer.Argument(metavar="[SWEEP]", help="YAML file, see tune_configs/.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; default: runs/NAME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the sweep in this folder; with SWEEP, start it there if it is new.")
    ] = None,
) -> None:
    """Run many trials of one config with some fields changed, on Ray Tune, with one ledger and one cap for all."""
    with exit_on_error():
        if config is None and resume is None:
            raise ConfigError("give the file of a sweep, see tune_configs/, or --resume with the folder of one")
        if out is not None and resume is not None:
            raise ConfigError("--out and --resume both name the folder of the sweep; keep one of them")
        out, resume = (None if folder is None else expand(folder) for folder in (out, resume))
        from kdray.sweeps.config import load_sweep

        # With --resume alone, an override comes first.
        changes = list(overrides or [])
        if config is not None and resume is not None and "=" in str(config):
            config, changes = None, [str(config), *changes]
        if resume is not None and config is None and changes:
            from kdray.sweeps.folder import SweepFolder

            config = SweepFolder(resume).config
        parsed = None if config is None else load_sweep(config, changes)  # before the next imports, which bring torch

        from kdray.sweeps.folder import SweepFolder, choose_folder

        where = resume or out
        folder = choose_folder(config.stem if config else "") if where is None else SweepFolder(where)
        if resume is None:
            folder.check_free()

        from kdray.sweeps.display import make_sweep_display
        from kdray.sweeps.sweep import sweep

        go_on = f"kdray sweep --resume {shown(folder.path)}"
        try:
            result = sweep(parsed, folder, resume=resume is not None, display=make_sweep_display())
        except (Halted, KeyboardInterrupt) as stopped:
            reason = str(stopped) or "the sweep was stopped"
            way = f"nothing is lost. Go on with: {go_on}" if folder.is_sweep() else "nothing was begun"
            print(f"kdray: {reason}; {way}", file=sys.stderr)
            raise typer.Exit(130) from None
        _show(result)
        if result.failed:
            print(f"{len(result.failed)} of {len(result.trials)} trials failed; when the causes are mended: {go_on}")
            raise typer.Exit(1)


def _show(result: "SweepResult") -> None:
    """The closing table, the best trial, and where everything is."""
    from kdray.sweeps.display import trial_table
    from kdray.sweeps.shown import figure_text, trial_words
    from kdray.utils.console import make_console

    console = make_console(width=output_width())
    console.print(trial_table(result.trials, result.metric))
    for trial in result.failed:
        console.print(f"failed: {trial_words(trial.values)}: {trial.cause}", soft_wrap=True)
    saved = sum(trial.saved for trial in result.trials)
    lines = [("bought", f"{result.bought:,} queries; {saved:,} answers cost nothing")]
    if result.best is not None and (last := result.best.last(result.metric)) is not None:
        lines += [
            ("best", f"{trial_words(result.best.values)}: {figure_text(result.metric, last.mean, last.error)}"),
            ("", f"({result.scope})"),
            *([("", f"({result.lead})")] if result.lead else []),
            ("config", shown(result.directory / "best.yaml")),
        ]
    else:
        lines += [("best", "none: no trial has finished with a figure")]
    lines += [("sweep", shown(result.directory)), ("report", shown(result.directory / "report.html"))]
    for name, value in lines:
        console.print(f"{name:<7}{value}", soft_wrap=True)
