"""`kdray plan`."""

from collections.abc import Iterable

from kdray.cli.common import ConfigArgument, Overrides, exit_on_error, output_width


def plan_command(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Say what a run would do and cost: pool, queries, price, time, memory. Of a sweep's file, how many trials it has
    and what they may buy. Asks and spends nothing."""
    with exit_on_error():
        from kdray.config.files import read_yaml

        data = read_yaml(config)
        if isinstance(data, dict) and "space" in data:
            from kdray.sweeps.config import parse_sweep

            swept = parse_sweep(data, overrides or [], origin=str(config))
            from kdray.sweeps.checks import look_ahead, outlook_lines

            _show(outlook_lines(swept, look_ahead(swept)))
            return
        from kdray.config.load import load_config

        parsed = load_config(config, overrides or [])  # before the next imports, which bring torch

        from kdray.runs.plan import make_plan, plan_lines

        _show(plan_lines(make_plan(parsed)))


def _show(lines: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from kdray.utils.console import make_console

    table = Table(show_header=False, box=None)
    for name, value in lines:
        table.add_row(Text(name, "bold"), value)
    make_console(width=output_width()).print(table)
