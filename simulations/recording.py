"""From what a run produced to the lines of its record."""

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from cloister.clients.site import LOG_NAME
from cloister.clients.task import Task
from cloister.flower import views
from cloister.privacy.plan import Plan
from cloister.server.app import Finish, RoundReport, Scores, load_arrays
from cloister.server.evaluation.selection import selected
from cloister.simulations.experiment import Experiment, plain
from cloister.simulations.prepare import Prepared
from cloister.simulations.record import Client, Evaluation, Metrics, Rejection, Round, RunRecord, Traffic

OnRound = Callable[[RoundReport], Any]

_NOT_SAID: dict[str, Any] = {"cohort": [], "client_metrics": {}, "rejected": [], "seconds": 0.0, "stages": {}}


def now() -> str:
    """Return the present time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def plain_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the resolved experiment as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(plain(experiment.model_dump())))
    return values


def client_rows(task: Task[Any]) -> list[Client]:
    """Return the client table as the task describes it; weights and steps are filled in after the first round."""
    return [Client(**asdict(row)) for row in task.table()]


def round_entry(done: RoundReport) -> Round:
    """Return one round's line in the record."""
    result = done.result
    scores = dict(done.scores.metrics) if done.scores is not None else {}
    return Round(
        round=result.number,
        seconds=sum(result.seconds.values()),
        cohort=list(result.cohort),
        metrics={**result.metrics, **result.evaluation, **scores},
        client_metrics={name: dict(it.metrics) for name, it in result.outcomes.items() if it.accepted},
        rejected=[Rejection(client=name, reason=it.reason) for name, it in result.outcomes.items() if not it.accepted],
        stages=dict(result.seconds),
    )


def add_round(record: RunRecord, done: RoundReport, plan: Plan) -> None:
    """Add a finished round and its bytes to the record.

    Where the server adds the noise, who took part, how many they were and whose reply was refused is what the noise
    hides: the record, which may be published, says nothing of it, nor how long the round took for them.
    """
    entry = round_entry(done)
    if plan.central:
        record.rounds = [
            *(earlier for earlier in record.rounds if earlier.round < entry.round),
            entry.model_copy(update={**_NOT_SAID, "metrics": entry.metrics}),
        ]
        return
    record.rounds = [earlier for earlier in record.rounds if earlier.round < entry.round] + [entry]
    for name, traffic in done.result.traffic.items():
        total = record.traffic.setdefault(name, Traffic())
        for kinds, counts in ((total.up, traffic.up), (total.down, traffic.down)):
            for kind, count in counts.items():
                kinds[kind] = kinds.get(kind, 0) + count
    examples = {name: outcome.examples for name, outcome in done.result.outcomes.items() if outcome.accepted}
    for client in record.clients:
        if client.name in examples and client.weight is None and len(examples) == len(record.clients):
            client.weight = examples[client.name] / sum(examples.values())
            client.steps = done.result.outcomes[client.name].steps


def finish(record: RunRecord, folder: Path, prepared: Prepared, done: Finish, scores: Scores | None) -> None:
    """Add the final scores, and whatever the evaluator shows of them, to the record."""
    if prepared.evaluator is None:
        last = record.rounds[-1].metrics if record.rounds else {}
        measured: Metrics = {name: value for name, value in last.items() if value is not None}
        if record.rounds and not measured:  # under noise, clients report nothing
            measured = {"rounds": float(len(record.rounds))}
        record.final = measured
        return
    scores = scores if scores is not None else prepared.evaluator.evaluate(done.model.eval())
    record.final = dict(scores.metrics)
    chosen = selected([entry.metrics for entry in record.rounds])
    if chosen is not None:
        record.baselines["validation-selected"] = chosen
    describe: Callable[[Path], Evaluation] | None = getattr(scores, "describe", None)
    if describe is not None:
        record.evaluation = Evaluation.model_validate(describe(folder))


def add_baseline(record: RunRecord, name: str, prepared: Prepared, done: Finish, metrics: Metrics) -> None:
    """Add a baseline's scores: one line, or one per client and their mean where every client has its own model.

    ``metrics`` are those of its rounds: they stand where the server has no evaluator.
    """
    if prepared.evaluator is None:
        record.baselines[name] = dict(metrics)
        return
    if not done.client_arrays:
        record.baselines[name] = dict(prepared.evaluator.evaluate(done.model.eval()).metrics)
        return
    each = {}
    for client, arrays in done.client_arrays.items():
        model = load_arrays(done.model, views(arrays)).eval()
        each[client] = dict(prepared.evaluator.evaluate(model).metrics)
        record.baselines[f"{name}/{client}"] = dict(each[client])
    keys = next(iter(each.values()))
    record.baselines[name] = {key: fmean(scores[key] for scores in each.values()) for key in keys}


def client_logs(folder: Path, lines: int = 3) -> str:
    """Return the last lines of every client's own log: in a simulation, whoever runs it owns all clients."""
    found = []
    for path in sorted(folder.glob(f"*/{LOG_NAME}")):
        tail = path.read_text().splitlines()[-lines:]
        found.append(f"  {path.parent.name} ({path}):\n" + "\n".join(f"    {line}" for line in tail))
    return "What the clients' own logs say:\n" + "\n".join(found) if found else ""
