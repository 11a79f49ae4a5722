"""`kdray preview`: a contact sheet of a pool, or of what a run has bought. Asks and spends nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import Overrides, exit_on_error
from kdray.errors import ConfigError
from kdray.utils.files import expand, shown

if TYPE_CHECKING:
    from kdray.runs.directory import RunDirectory

_MOST = 1000  # images of a sheet, which is drawn in memory


def preview_command(
    where: Annotated[Path, typer.Argument(metavar="CONFIG|RUN", help="A config's YAML file, or a run directory.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(metavar="N", help="Images to show, at most.")] = 64,
    columns: Annotated[
        int | None, typer.Option(metavar="N", help="Images of a row, at most; default: 8, with --groups a whole group.")
    ] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", metavar="K", help="Of a run: this round alone.")
    ] = None,
    pool: Annotated[bool, typer.Option("--pool", help="Of a run: candidates of its pool, not what it bought.")] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="Whole groups: every pair of images in a row of its own, at all λ.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The PNG file; default: RUN/preview.png, or runs/NAME-preview.png of a config.")
    ] = None,
) -> None:
    """Write one PNG that shows random candidates of a config's pool, or what a run has bought with the teacher's three
    likeliest classes, or what a round (--round) has chosen and not yet asked about. Asks and spends nothing."""
    with exit_on_error():
        from kdray.config.files import bundled
        from kdray.config.load import load_config
        from kdray.runs.directory import RunDirectory, runs_folder

        for option, number in (("--count", count), ("--columns", columns)):
            if number is not None and not 1 <= number <= _MOST:
                raise ConfigError(f"{option}: got {number:,}; give a number from 1 to {_MOST:,}")
        run = RunDirectory(where)
        if run.is_run():
            _check_of_run(run, overrides, round_number, pool)
        else:
            where = bundled(expand(where))
            _check_of_config(where, round_number, pool)
        config = load_config(run.config if run.is_run() else where, overrides or [])  # before what brings torch

        from kdray.report.choice import is_chosen, preview_choice
        from kdray.report.groups import groups_of_pool, groups_of_run
        from kdray.report.preview import check_target, preview_pool, preview_run, write_preview

        default = run.path / "preview.png" if run.is_run() else runs_folder() / f"{where.stem}-preview.png"
        target = default if out is None else expand(out)
        check_target(target)
        if run.is_run() and not pool and not groups and round_number is not None and is_chosen(run, round_number):
            preview = preview_choice(run, config, round_number, count)
        elif run.is_run() and not pool:
            preview = (groups_of_run if groups else preview_run)(run, config, count, round_number)
        else:
            preview = groups_of_pool(config, count) if groups else preview_pool(config, count, run if pool else None)
        whole = max(len(part.images) for part in preview.parts)
        write_preview(preview, target, columns or (whole if groups else 8))
        for note in preview.notes:
            print(note)
        print(f"{preview.what}: {shown(target)}")


def _check_of_run(run: "RunDirectory", overrides: list[str] | None, round_number: int | None, pool: bool) -> None:
    if overrides:
        raise ConfigError(
            f"override {overrides[0]!r}: the config of a run is fixed; leave it out, or preview its config with it: "
            f"kdray preview {run.config} {overrides[0]}"
        )
    if pool and round_number is not None:
        raise ConfigError(f"--round {round_number} shows what a run bought, --pool what it chooses from; give one")


def _check_of_config(path: Path, round_number: int | None, pool: bool) -> None:
    if not path.exists():
        raise ConfigError(f"{path} is not there; give a config's YAML file, or a run directory")
    if (path / "sweep.yaml").is_file():
        raise ConfigError(f"{path} is a sweep; give one of its runs, which are {path}/trials/NAME/seed-N")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder that holds no run; give a config's YAML file, or a run directory")
    for option, given in (("--round", round_number is not None), ("--pool", pool)):
        if given:
            raise ConfigError(f"{option} is for a run, and {path} is a file; leave it out")
