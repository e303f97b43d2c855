"""Commands about what is known: lists of models and machines, packages of chips."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from opgraph.cli.options import (
    AsJson,
    Plot,
)
from opgraph.console import (
    print_json,
    print_package,
    print_table,
    progress,
    save_figure,
)

_GIGA = 1e9
app = typer.Typer()


class Listing(StrEnum):
    """What can be listed."""

    models = "models"
    chips = "chips"
    platforms = "platforms"


@app.command("list")
def list_names(what: Listing, as_json: AsJson = False) -> None:
    """What is in the catalogue: models, chips or platforms."""
    rows = {"models": _model_rows, "chips": _chip_rows, "platforms": _platform_rows}[what.value]()
    if as_json:
        print_json(rows)
    else:
        print_table(what.value, [{k: v for k, v in row.items() if k != "source"} for row in rows])


@app.command("package")
def show_package(
    spec: Annotated[str, typer.Argument(help="a TOML file, as examples/package.toml")],
    interposer: Annotated[str | None, typer.Option(help="another: silicon, organic, glass")] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Temperatures, slowdown, links and bow of chiplets on an interposer."""
    from hardware import load_package

    package = load_package(spec, interposer)
    if plot:
        from opgraph.plots import temperatures

        save_figure(lambda ax: temperatures(package, ax), plot, (8, 6))
    if as_json:
        print_json(package.to_dict())
    else:
        print_package(package)


def _model_rows() -> list[dict[str, Any]]:
    from frontends import list_models, load_model

    # a catalogue takes over a second to build
    with progress("reading models") as track:
        models = {name: load_model(name) for name in track(list_models())}
    return [
        {
            "name": name,
            "family": model.family,
            "num_parameters": model.num_parameters,
            "num_active_parameters": model.num_active_parameters,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "attention": model.attention,
        }
        for name, model in models.items()
    ]


def _chip_rows() -> list[dict[str, Any]]:
    from hardware import list_chips, load_chip

    return [
        {
            "name": chip.name,
            "bf16_TFLOP_per_s": float(chip.peak("bf16")) / 1e12,
            "fp8_TFLOP_per_s": float(chip.peak("fp8")) / 1e12,
            "memory_GB": float(chip.memory_capacity) / _GIGA,
            "bandwidth_GB_per_s": float(chip.memory_bandwidth) / _GIGA,
            "power_W": chip.power,
            "source": chip.source,
        }
        for chip in map(load_chip, list_chips())
    ]


def _platform_rows() -> list[dict[str, Any]]:
    from hardware import list_platforms, load_platform

    return [
        {
            "name": platform.name,
            "chip": platform.chip.name,
            "num_chips": platform.num_chips,
            "levels": " · ".join(
                f"{level.name} {level.size} {level.topology} "
                f"{float(level.link.bandwidth) / _GIGA:g} GB/s"
                for level in platform.levels
            ),
            "source": platform.source,
        }
        for platform in map(load_platform, list_platforms())
    ]
