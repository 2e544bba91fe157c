"""The command line: stable names, one function each; heavy imports happen inside the command that needs them."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cloister.cli_ledger import ledger_app
from cloister.cli_verify import verify
from cloister.errors import CloisterError, ConfigError

app = typer.Typer(
    name="cloister",
    help="Federated, privacy-preserving learning on people: cameras, faces, pulses.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
world_app = typer.Typer(help="Make procedural data with ground truth, in a real data set's own layout.")
data_app = typer.Typer(help="Check and cut data sets on disk.")
app.add_typer(world_app, name="world", no_args_is_help=True)
app.add_typer(data_app, name="data", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger", no_args_is_help=True)
app.command()(verify)

console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/NAME-PRESET-TIME.")]
Preset = Annotated[str, typer.Option("--preset", help="tiny, small or paper.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.path=value. Repeatable.")]


def main() -> None:
    """Run the command line; an error that Cloister raises ends it with its message and a non-zero status."""
    try:
        app()
    except CloisterError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)


def show(values: Any) -> None:
    """Print a result as JSON on standard output."""
    print(json.dumps(values, indent=1, default=str))


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="An experiment's name or TOML file.")],
    engine: Annotated[str, typer.Option("--engine", help="local or ray.")] = "",
    preset: Preset = "",
    data: Annotated[
        Path | None, typer.Option("--data", help="The data set's folder. Default: a world is made.")
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the resolved experiment and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run an experiment, its baselines and its evaluation; leave a run folder with a report."""
    if not print_only:
        _warm_up(engine or "local")
    from cloister.simulations.experiment import Experiment

    chosen = [*([f'engine.name="{engine}"'] if engine else ()), *(overrides or ())]  # a new name starts a table anew
    loaded = Experiment.load(experiment, preset=preset, overrides=chosen, data=str(data.resolve()) if data else None)
    if print_only:
        print(loaded.to_toml(), end="")
        return
    from cloister.simulations import run as runner

    folder = out or Path("runs") / f"{loaded.name}-{loaded.preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    record = runner.run(loaded, folder, console=console)
    _finish(folder, record, as_json)


@app.command()
def resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")], as_json: Json = False
) -> None:
    """Continue a run that was interrupted, from its last complete round."""
    _warm_up("local")
    from cloister.simulations import run as runner

    _finish(run_folder, runner.resume(run_folder, console=console), as_json)


@app.command()
def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run folder, or several to compare.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write a comparison.")] = None,
) -> None:
    """Write a run's report.html anew, or compare several runs on one page."""
    from cloister.simulations import report as reports
    from cloister.simulations.record import write_whole

    if len(run_folders) == 1 and out is None:
        print(reports.write(run_folders[0]))
        return
    path = out or Path("comparison.html")
    write_whole(path, reports.compare(run_folders).encode())
    print(path)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")], folder: Annotated[Path, typer.Argument(metavar="DIR")]
) -> None:
    """Copy a run's last weights (safetensors), experiment, record and report to a folder of their own."""
    from cloister.simulations import run as runner
    from cloister.simulations.record import RunRecord

    for path in runner.export(run_folder, folder):
        print(path)
    if unfinished := RunRecord.load(folder).unfinished:
        console.print(f"this run is not finished: {unfinished}", style="yellow", markup=False, highlight=False)


@app.command()
def audit(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    only: Annotated[list[str] | None, typer.Option("--only", help="An audit's name. Repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Attack a finished run and set what was measured beside what was claimed; fails where a claim is disproved."""
    _warm_up("local")
    from cloister.simulations import auditing
    from cloister.simulations import run as runner

    found = runner.audit(run_folder, only or (), console=console)
    if as_json:
        show([result.values() for result in found])
    else:
        from cloister.simulations.summary import audit_table

        Console().print(audit_table(found))
        print(f"report: {(run_folder / 'report.html').resolve()}")
    if auditing.contradicted(found):
        raise typer.Exit(1)


@app.command()
def experiments(as_json: Json = False) -> None:
    """List the experiments that come with Cloister."""
    from cloister.simulations import experiment

    rows = [{"name": name, "title": experiment.Experiment.load(name).title} for name in experiment.names()]
    if as_json:
        show(rows)
    else:
        for row in rows:
            print(f"{row['name']:16} {row['title']}")


@world_app.command("make")
def world_make(
    name: Annotated[str, typer.Argument(help="The world: reid.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    layout: Annotated[str, typer.Option("--layout", help="sysu-mm01, regdb or llcm.")] = "sysu-mm01",
    preset: Preset = "tiny",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Write a procedural data set to DIR in a real data set's own layout."""
    from cloister.simulations import worlds

    print(worlds.make(name, layout, folder, preset=preset, seed=seed, console=console))


@data_app.command("check")
def data_check(
    layout: Annotated[str, typer.Argument(help="sysu-mm01, regdb or llcm.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Read a data set through, image by image, and say what is wrong with it and what to do."""
    from cloister.simulations import data

    report_ = data.check(layout, folder, console=console)
    show(report_.as_json()) if as_json else print(report_)
    if not report_.ok:
        raise typer.Exit(1)


@data_app.command("split")
def data_split(
    layout: Annotated[str, typer.Argument(help="sysu-mm01, regdb or llcm.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    protocol: Annotated[str, typer.Option("--protocol", help="ci or uci.")] = "ci",
) -> None:
    """Cut one data set into one folder per client, each a valid data set with only that client's files."""
    from cloister.simulations import data

    for path in data.split(layout, folder, out, protocol=protocol, console=console):
        print(path)


@app.command()
def bench(name: Annotated[str, typer.Argument(help="engines.")], as_json: Json = False) -> None:
    """Measure speed against a named peer or a bare loop in the same run."""
    from cloister import bench as benches

    result = benches.run(name, console=console)
    if as_json:
        show(result)
    if not all(target["met"] for target in result["targets"]):
        raise typer.Exit(1)


def _finish(folder: Path, record: Any, as_json: bool) -> None:
    if as_json:
        print(record.model_dump_json(indent=1))
    else:
        from cloister.simulations.summary import table

        Console().print(table(record))
        print(f"report: {(folder / 'report.html').resolve()}")


def _warm_up(engine: str) -> None:
    """Start the process that workers are forked from now: it imports torch while this one reads the experiment."""
    if engine == "local":
        from cloister.simulations.engines.nursery import nursery

        nursery()


_LATER = {
    "node": "central diffusion and MLLM nodes",
    "mllm-eval": "evaluation by the MLLM node",
    "cluster": "Ray clusters: check, slurm, kuberay, up, down",
    "pki": "certificates and keys of a deployment",
    "site": "a client's site: init, run",
    "link": "the server's end of a deployment",
}


def _refuse(name: str, what: str) -> None:
    @app.command(name, help=f"Not in this version: {what}.", context_settings={"ignore_unknown_options": True})
    def refuse(arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        raise ConfigError(f"`cloister {name}` is not in this version ({what}); see CHANGELOG.md")


for _name, _what in _LATER.items():
    _refuse(_name, _what)

if __name__ == "__main__":
    main()
