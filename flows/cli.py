"""The command line. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 a gate refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modcap.errors import InputError, ModcapError
from modcap.recipe import CapacityKind, Method, Recipe, Schedule, Selection

__all__ = ["app", "main"]

_UsageError: Any = typer.BadParameter.__base__  # typer may carry a click of its own

app = typer.Typer(
    name="modcap",
    help="Post-training quantization of vision networks by module capacity.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stack = typer.Typer(help="The local stack: S3, MLflow, Prefect and Ray on loopback.")
app.add_typer(stack, name="stack")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Checkpoint = Annotated[str, typer.Argument(help="Local path or s3:// address of a checkpoint.")]
Arch = Annotated[
    str | None, typer.Option(help="torchvision:NAME, timm:NAME or package.module:factory.")
]
Data = Annotated[
    str, typer.Option(help="fashion-mnist[:DIR], an ImageFolder directory or an .npz.")
]
Preprocess = Annotated[str | None, typer.Option(help="Such as 'mean=0.286,std=0.353'.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="YAML or JSON with recipe fields; flags win.")
]
Preset = Annotated[str, typer.Option(help="quick or paper: what flags and files do not name.")]


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The fields that a recipe file names."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"recipe {path}: cannot be read ({reason}): give YAML or JSON") from None
    if not isinstance(values, dict):
        raise InputError(f"recipe {path}: give a mapping of recipe fields, such as 'w_bits: 2'")
    return values


def parse_k(text: str | None) -> dict[str, Any]:
    """``--k``: a number, or ``auto``."""
    if text is None:
        return {}
    if text == "auto":
        return {"k": None}
    if not text.isdecimal():
        raise InputError(f"--k {text!r}: give a number of boundaries, or 'auto'")
    return {"k": int(text)}


def make_recipe(preset: str, path: Path | None, flags: dict[str, Any]) -> Recipe:
    """The preset, overlaid by the file, overlaid by the flags that were given."""
    given = {name: value for name, value in flags.items() if value is not None}
    iterations = given.pop("iterations", None)
    if iterations is not None:
        given["optimiser"] = {"iterations": iterations}
    base = Recipe.preset(preset)
    if path is not None:
        base = Recipe.make(read_recipe_file(path), base)
    return Recipe.make(given, base)


@app.command()
def quantize(
    checkpoint: Checkpoint,
    data: Data,
    arch: Arch = None,
    w_bits: Annotated[int | None, typer.Option(help="Bits of weights, 2 to 8.")] = None,
    a_bits: Annotated[int | None, typer.Option(help="Bits of activations, 2 to 8.")] = None,
    k: Annotated[str | None, typer.Option(help="Boundaries to select, or 'auto'.")] = None,
    method: Method | None = None,
    capacity: CapacityKind | None = None,
    selection: Selection | None = None,
    schedule: Schedule | None = None,
    iterations: Annotated[int | None, typer.Option(help="Steps per group.")] = None,
    calibration: Annotated[int | None, typer.Option(help="Calibration images.")] = None,
    seed: int | None = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    eval_data: Annotated[str | None, typer.Option(help="Test images, if elsewhere.")] = None,
    eval_images: Annotated[int | None, typer.Option(help="How many; all by default.")] = None,
    preprocess: Preprocess = None,
    name: Annotated[str | None, typer.Option(help="Name of the registered model.")] = None,
    compare: Annotated[bool, typer.Option(help="Also run rounding to nearest and k = 0.")] = True,
    json_: Json = False,
) -> None:
    """Quantize one checkpoint, register the result in MLflow and print a report."""
    from flows.connect import use_services
    from flows.request import Request, prepare

    fields = {
        "w_bits": w_bits,
        "a_bits": a_bits,
        "method": method,
        "capacity": capacity,
        "selection": selection,
        "schedule": schedule,
        "iterations": iterations,
        "calibration": calibration,
        "seed": seed,
    }
    full = make_recipe(preset, recipe, fields)
    full = Recipe.make(parse_k(k), full)
    request = Request(
        checkpoint=checkpoint,
        arch=arch,
        data=data,
        eval_data=eval_data,
        eval_images=eval_images,
        preprocess=preprocess,
        name=name,
        recipe=full,
    )
    if not any(str(place).startswith("s3://") for place in (checkpoint, data, eval_data)):
        prepare(request)  # bad input is refused before anything starts
    use_services()
    from flows.quantize import quantize as flow

    report = flow(request, compare)
    if json_:
        print(json.dumps(report))
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    recipe = report["recipe"]
    bits = f"W{recipe['w_bits']}A{recipe['a_bits']}"
    title = f"{report['model_name']} version {report['model_version']}: {bits}"
    table = Table(title=title, title_justify="left")
    for heading in ("variant", "top-1 %", "drop", "oscillation", "groups", "bytes"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in report["comparison"]:
        quantized = "drop" in row
        table.add_row(
            row["variant"],
            f"{row['top1']:.2f}",
            f"{row['drop']:.2f}" if quantized else "",
            f"{row['oscillation']:.3f}" if quantized else "",
            str(row["groups"]) if quantized else "",
            f"{row['artifact_bytes']:,}" if quantized else f"{report['fp_bytes']:,}",
        )
    console.print(table)
    jobs = report["jobs"]
    console.print(
        f"jobs: {jobs['planned']} planned, {jobs['executed']} executed, {jobs['reused']} reused; "
        f"{report['seconds']:.1f} s; {report['images']} test images",
        soft_wrap=True,
    )
    console.print(f"MLflow run: {report['mlflow_run_url']}", soft_wrap=True, markup=False)
    console.print(f"artifact:   {report['artifact']}", soft_wrap=True, markup=False)


@app.command("capacity")
def capacity_command(
    checkpoint: Checkpoint,
    data: Data,
    arch: Arch = None,
    w_bits: Annotated[int | None, typer.Option(help="Bits of weights, 2 to 8.")] = None,
    k: Annotated[str | None, typer.Option(help="Boundaries to select, or 'auto'.")] = None,
    capacity: CapacityKind | None = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    preprocess: Preprocess = None,
    json_: Json = False,
) -> None:
    """Show the capacity of every module and the boundaries it selects; starts no server."""
    from flows.capacity import measure_capacity
    from flows.request import Request

    full = make_recipe(preset, recipe, {"w_bits": w_bits, "capacity": capacity})
    full = Recipe.make(parse_k(k), full)
    report = measure_capacity(
        Request(checkpoint=checkpoint, arch=arch, data=data, preprocess=preprocess, recipe=full)
    )
    if json_:
        print(json.dumps(report))
        return
    table = Table(title=f"k = {report['k']}", title_justify="left")
    for heading in ("module", "capacity", "differential to the next", ""):
        table.add_column(heading, justify="right" if heading.startswith(("c", "d")) else "left")
    marks = [
        "joined" if chosen else "" if homogeneous else "not homogeneous"
        for chosen, homogeneous in zip(report["selected"], report["homogeneous"], strict=True)
    ]
    for row in zip(
        report["modules"],
        [f"{value:.4g}" for value in report["capacities"]],
        [*(f"{value:.4g}" for value in report["differentials"]), ""],
        [*marks, ""],
        strict=True,
    ):
        table.add_row(*row)
    Console().print(table)


@app.command()
def evaluate(
    artifact: Annotated[str, typer.Argument(help="Local path or s3:// address of an artifact.")],
    data: Data,
    preprocess: Preprocess = None,
    eval_images: int | None = None,
    json_: Json = False,
) -> None:
    """Measure the top-1 accuracy of a quantized artifact."""
    from flows.evaluate import evaluate_artifact

    report = evaluate_artifact(artifact, data, preprocess, eval_images)
    print(json.dumps(report) if json_ else f"top-1 {report['top1']:.2f} % of {report['images']}")


@stack.command("up")
def stack_up(json_: Json = False) -> None:
    """Start what is missing and wait until all of it answers."""
    from infra import local

    local.up(report=lambda line: print(line, file=sys.stderr, flush=True))
    stack_status(json_)


@stack.command("down")
def stack_down(json_: Json = False) -> None:
    """Stop every service of the local stack; data stays."""
    from infra import local

    stopped = local.down()
    print(
        json.dumps({"stopped": stopped}) if json_ else f"stopped: {', '.join(stopped) or 'nothing'}"
    )


@stack.command("status")
def stack_status(json_: Json = False) -> None:
    """Show each service, its address and its state."""
    from infra import local

    services = [status.as_dict() for status in local.status()]
    if json_:
        print(json.dumps({"services": services}))
        return
    table = Table()
    for heading in ("service", "state", "address", "pid"):
        table.add_column(heading)
    for service in services:
        table.add_row(*(str(service[key] or "") for key in ("name", "state", "address", "pid")))
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code; errors are one line on stderr."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    try:
        code = app(args=arguments, standalone_mode=False)
    except _UsageError as error:
        code = _fail(error.format_message(), 2)
    except ModcapError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted: start the same command again, finished jobs are kept", 1)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"modcap: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
