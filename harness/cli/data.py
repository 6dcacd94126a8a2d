"""The command that shows what a data set holds before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.commands import SettingsCommand
from harness.cli.options import setting_options_only
from harness.cli.terminal import echo
from harness.config.names import FIXED_DATASETS, TIMM_PREFIXES, data_of_path
from harness.config.recipe import make_config
from harness.utils.registry import find_registered

SETTINGS = (
    "recipe", "data", "data_dir", "image_column", "label_column", "label_separator", "label_columns",
    "split_column", "image_root", "download", "test_fraction",
    "grey_range", "model", "model_args", "image_size", "in_chans", "resize", "plugin",
)  # fmt: skip


@click.command(cls=SettingsCommand, shown=SETTINGS)
@click.argument("source", metavar="[DATA]", required=False)
@click.option(
    "-o", "--out", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Draw a contact sheet, PNG or SVG."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--limit",
    default=20_000,
    show_default=True,
    type=click.IntRange(0),
    help="Read at most this many images, evenly spread; 0: all.",
)
@setting_options_only(*SETTINGS)
def data(settings: dict[str, Any], source: str | None, out: Path | None, as_json: bool, limit: int) -> None:
    """Show what a data set holds before training: splits, classes, sizes, kinds, broken and repeated images.

    DATA is a folder, a tar archive, a table (CSV, Parquet) or the name of a data set. Below the facts is a line of advice
    for each problem. The contact sheet has images of each class as they are stored, and as the model sees them.

    \b
    harness data pictures
    harness data pictures.csv --output pictures.png
    harness data digits --json
    """
    from harness.checks import data_report
    from harness.data.overview import examine
    from harness.reporting.figures.style import figure_kind
    from harness.utils.plain import json_text

    if source is not None:
        settings = {**settings, **_of_source(source, settings)}
    if out is not None:
        figure_kind(out)
    config = make_config(settings)
    overview = examine(config, limit)
    if as_json:
        echo(json_text(data_report.overview_values(config, overview), indent=1))
    else:
        echo(data_report.overview_text(overview))
    if out is not None:
        echo(f"contact sheet: {data_report.draw_contact_sheet(config, overview, out)}", err=True)


def _of_source(source: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the argument stands for: a path, or the name of a data set."""
    is_path = source not in FIXED_DATASETS and (Path(source).expanduser().exists() or bool(data_of_path(source)))
    is_name = source in FIXED_DATASETS or source.lower().startswith(TIMM_PREFIXES) or bool(settings.get("plugin"))
    if not is_path and not is_name:
        is_name = find_registered("dataset", source) is not None  # of an installed plug-in
    if is_path or not is_name:
        given = {"data_dir": source, "data": settings.get("data") or data_of_path(source) or "folder"}
    else:
        given = {"data": source}
    for name in given:
        if settings.get(name, given[name]) != given[name]:
            option = f"--{name.replace('_', '-')} {settings[name]}"
            raise click.UsageError(f"{source!r} and {option} both name the data; keep one of them")
    return given
