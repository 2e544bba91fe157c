"""Running an experiment: the federated run, its baselines, the record, the report; and resuming all of that."""

import contextlib
import fcntl
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from cloister.errors import QuorumError, RunError
from cloister.models import exported
from cloister.privacy.audits.result import AuditResult
from cloister.randomness import SeedTree
from cloister.server import checkpoint
from cloister.server.app import Finish, RoundReport, Scores, load_arrays, serve
from cloister.server.evaluation.selection import PREFIX
from cloister.server.scribe import Scribe
from cloister.simulations import auditing, card, recording, report, sweep, transcribing
from cloister.simulations.auditing.victim import Victim
from cloister.simulations.byzantine import with_attackers
from cloister.simulations.claims import privacy_of
from cloister.simulations.deviations import deviations
from cloister.simulations.engines import open_grid
from cloister.simulations.experiment import Experiment
from cloister.simulations.prepare import Prepared, prepare, ready
from cloister.simulations.progress import Display
from cloister.simulations.record import Metrics, RunRecord, write_whole
from cloister.simulations.tracking import tracker
from cloister.simulations.transcribing import EXPERIMENT_FILE

_PACKAGES = ("cloister", "torch", "flwr", "ray", "numpy", "safetensors", "pillow")


def run(experiment: Experiment, folder: Path, *, console: Console) -> RunRecord:
    """Run the experiment with its baselines into a new run folder and return its record.

    The folder is made when the experiment and its baselines are known to be able to start. Raises :class:`RunError` if
    it already holds a run; whatever the data, a client or the disk does wrong ends the run with an error that names it,
    and ``cloister resume`` continues from the last complete round.
    """
    if (folder / EXPERIMENT_FILE).exists():
        raise RunError(
            f"{folder}: already holds a run; `cloister resume {folder}` continues it, or choose another --out"
        )
    prepared = ready(experiment, console=console)
    with _locked(folder):
        write_whole(folder / EXPERIMENT_FILE, experiment.to_toml().encode())
        return _execute(prepared, folder, None, console)


def resume(folder: Path, *, console: Console) -> RunRecord:
    """Continue the run in ``folder``; a run that is complete only gets its report written anew."""
    if not (folder / EXPERIMENT_FILE).is_file():
        raise RunError(f"{folder}: no run here (no {EXPERIMENT_FILE}); start one with `cloister run`")
    with _locked(folder):
        prepared = ready(Experiment.load(str(folder / EXPERIMENT_FILE)), console=console)
        return _execute(prepared, folder, _recorded(folder), console)


def export(folder: Path, target: Path) -> list[Path]:
    """Write a run's model (weights, configuration, card), experiment, record and report to ``target``; return them.

    ``cloister.models.exported.from_pretrained(target)`` loads the model. The report is left out where there is none. Of
    a run that is not finished, the record is the one that belongs to the weights, and its ``unfinished`` says so.
    Raises :class:`RunError` where there is no run or no checkpoint yet, or ``target`` cannot be written.
    """
    saved, record = checkpoint.latest(folder / "checkpoints"), _recorded(folder)
    if saved is None or record is None or not (folder / EXPERIMENT_FILE).is_file():
        raise RunError(f"{folder}: expected a run with a checkpoint, found none; run or resume it first")
    experiment = Experiment.load(str(folder / EXPERIMENT_FILE))
    record.unfinished = _unfinished(experiment, record, folder)
    prepared = prepare(experiment)
    seeds = SeedTree(experiment=experiment.name, seed=experiment.seed)
    model = load_arrays(prepared.task.spec.build(seeds.torch(purpose="model")), saved.arrays)
    copies = [(folder / EXPERIMENT_FILE, target / EXPERIMENT_FILE)]
    if (folder / report.FILE_NAME).is_file():
        copies.append((folder / report.FILE_NAME, target / report.FILE_NAME))
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source, copy in copies:
            shutil.copyfile(source, copy)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error}); choose another folder") from error
    written = exported.save_pretrained(target, prepared.task.spec, model.state_dict())
    return [
        *written,
        card.write(record, target, loadable=len(written) > 1),
        *(copy for _, copy in copies),
        record.save(target),
    ]


def _unfinished(experiment: Experiment, record: RunRecord, folder: Path) -> str:
    rest = f"`cloister resume {folder}` does the rest"
    if not record.final:
        return f"{len(record.rounds)} of {experiment.rounds} rounds are done, there is no final evaluation; {rest}"
    missing = [name for name in experiment.baselines if name not in record.baselines]
    return f"training is over, the baselines {', '.join(missing)} are not; {rest}" if missing else ""


def _recorded(folder: Path) -> RunRecord | None:
    """Return the record to go on with: that of a run whose training is over, or the one in the last checkpoint.

    ``record.json`` alone may be a round ahead of the weights, or damaged.
    """
    with contextlib.suppress(RunError):
        record = RunRecord.load(folder)
        if record.final:
            return record
    saved = checkpoint.latest(folder / "checkpoints")
    return RunRecord.model_validate(saved.state["record"]) if saved else None


def _execute(prepared: Prepared, folder: Path, known: RunRecord | None, console: Console) -> RunRecord:
    experiment = prepared.experiment
    record = known or _new_record(prepared)
    record.save(folder)
    with Display(console) as display:
        if experiment.sweep is not None:
            sweep.execute(experiment, folder, record, _run_point, display)
            record.save(folder)
        elif not record.final:
            scribe = transcribing.scribe_of(prepared, folder, run_id(folder))
            finish, scores = _train(prepared, folder, record, display, scribe)
            record.privacy = privacy_of(prepared, folder, run_id(folder))
            recording.finish(record, folder, prepared, finish, scores)
            transcribing.end(record, scribe)
            record.save(folder)
        for name in experiment.baselines:
            if name not in record.baselines:
                _baseline(experiment, name, folder, record, display)
                record.save(folder)
    report.write(folder)
    return record


def _train(
    prepared: Prepared, folder: Path, record: RunRecord, display: Display, scribe: Scribe
) -> tuple[Finish, Scores | None]:
    experiment = prepared.experiment
    last: list[Scores | None] = [None]
    with display.stage("federated", experiment.rounds, len(record.rounds)) as bar, tracker(experiment, folder) as log:

        def on_round(done: RoundReport) -> dict[str, Any]:
            last[0] = done.scores
            recording.add_round(record, done, prepared.plan)
            record.transcript = transcribing.head(scribe)
            record.save(folder)
            log(record.rounds[-1])
            bar.advance(record.rounds[-1])
            return record.model_dump(mode="json")

        finish = _serve(prepared, folder, on_round, scribe)
    return finish, last[0]


def _baseline(experiment: Experiment, name: str, folder: Path, record: RunRecord, display: Display) -> None:
    baseline = experiment.baseline(name)
    if baseline.same_run(experiment):  # the run itself is this baseline
        record.baselines[name] = {key: value for key, value in record.final.items() if not key.startswith(PREFIX)}
        return
    prepared = prepare(baseline)
    own = folder / "baselines" / name
    saved = checkpoint.latest(own / "checkpoints")
    metrics: Metrics = dict(saved.state["record"]) if saved else {}
    with display.stage(name, prepared.experiment.rounds, saved.round if saved else 0) as bar:

        def on_round(done: RoundReport) -> Metrics:
            entry = recording.round_entry(done)
            metrics.update(entry.metrics)
            bar.advance(entry)
            return metrics

        recording.add_baseline(record, name, prepared, _serve(prepared, own, on_round), metrics)


def _serve(prepared: Prepared, folder: Path, on_round: recording.OnRound, scribe: Scribe | None = None) -> Finish:
    assignment = prepared.assignment(
        folder / "checkpoints", on_round, run=run_id(folder), books=folder / "server", scribe=scribe
    )
    with open_grid(prepared.experiment.engine, prepared.nodes(folder / "clients")) as grid:
        try:
            hostile = prepared.experiment.byzantine, prepared.clients, assignment.strategy.groups, assignment.seeds
            return serve(with_attackers(grid, *hostile), assignment)
        except QuorumError as error:
            logs = recording.client_logs(folder / "clients")
            raise QuorumError(f"{error.args[0]}\n{logs}" if logs else str(error.args[0])) from error


def audit(folder: Path, names: Sequence[str] = (), *, console: Console) -> list[AuditResult]:
    """Attack the finished run in ``folder``, put what was found into its record and report, and return all of it.

    ``names``: the audits to run; none: all that mean anything for the run. Audits that the record holds already are not
    run again. Raises :class:`RunError` for a run that is not finished.
    """
    with _locked(folder):
        prepared = ready(Experiment.load(str(folder / EXPERIMENT_FILE)), console=console)
        record = RunRecord.load(folder)
        if not record.final:
            raise RunError(f"{folder}: expected a finished run, found no final evaluation; `cloister resume` it first")
        experiment = prepared.experiment
        seeds = SeedTree(experiment=experiment.name, seed=experiment.seed)
        victim = Victim(folder=folder, prepared=prepared, record=record, seeds=seeds)
        found = auditing.audit(victim, names, console=console)
        report.write(folder)
    return found


def _run_point(experiment: Experiment, folder: Path, audits: Sequence[str]) -> RunRecord:
    """Run and audit one point of a sweep, or finish one that was interrupted; the sweep's own display is the only one.

    Audits that mean nothing for the point are left out.
    """
    quiet = Console(quiet=True)
    known = (folder / EXPERIMENT_FILE).is_file()
    record = resume(folder, console=quiet) if known else run(experiment, folder, console=quiet)
    if audits:
        audit(folder, audits, console=quiet)
        return RunRecord.load(folder)
    return record


def run_id(folder: Path) -> str:
    """Return the name by which ledgers know the run in ``folder``: drawn once, kept in a file."""
    path = folder / "run.id"
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex.encode())
    return path.read_text()


def _new_record(prepared: Prepared) -> RunRecord:
    experiment = prepared.experiment
    return RunRecord(
        experiment=experiment.name,
        preset=experiment.preset,
        engine=experiment.engine.name,
        seed=experiment.seed,
        title=experiment.title,
        protocol=str(experiment.setting("data", "protocol") or ""),
        command=" ".join(["cloister", *sys.argv[1:]]),
        started=recording.now(),
        settings=recording.plain_settings(experiment),
        versions={name: metadata.version(name) for name in _PACKAGES if _installed(name)},
        clients=recording.client_rows(prepared.task),
        deviations=deviations(prepared.task, experiment),
    )


def _installed(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: another process is running it; wait for it or stop it first") from None
        yield
