"""`kdray plan`."""

from kdray.cli.common import ConfigArgument, Overrides, exit_on_error, output_width


def plan_command(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Say what a run would do and cost: pool, queries, price, time, memory. Asks and spends nothing."""
    with exit_on_error():
        from kdray.config.load import load_config

        parsed = load_config(config, overrides or [])  # before the next imports, which bring torch

        from rich.table import Table
        from rich.text import Text

        from kdray.runs.plan import make_plan, plan_lines
        from kdray.utils.console import make_console

        table = Table(show_header=False, box=None)
        for name, value in plan_lines(make_plan(parsed)):
            table.add_row(Text(name, "bold"), value)
        make_console(width=output_width()).print(table)
