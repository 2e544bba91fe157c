"""The Flower ServerApp of ``flwr run``: the same server as ``cloister run``, set up from Flower's run configuration.

The keys in ``[tool.flwr.app.config]``: ``experiment`` (name), ``preset``, ``data`` (folder of the data set, for server
and clients alike), ``overrides`` (``key.path=value``, separated by semicolons). There is no run folder: what is known
of a round is one line of Flower's log.
"""

import logging

from flwr.app import Context

from cloister.errors import ConfigError
from cloister.server.app import Assignment, RoundReport, make_app
from cloister.simulations.experiment import Experiment
from cloister.simulations.prepare import prepare
from cloister.simulations.recording import round_entry

_LOG = logging.getLogger("flwr")  # what goes there Flower shows and streams


def assign(context: Context) -> Assignment:
    """Return the assignment that Flower's run configuration describes."""
    config = {key: str(value) for key, value in context.run_config.items()}
    if not config.get("data"):
        raise ConfigError("flwr run: set data=FOLDER in --run-config; `cloister world make reid FOLDER` makes one")
    experiment = Experiment.load(
        config["experiment"],
        preset=config.get("preset", ""),
        overrides=[text for text in config.get("overrides", "").split(";") if text],
        data=config["data"],
    )
    with experiment.origin.named():
        return prepare(experiment).assignment(None, lambda done: _LOG.info("%s", line(done, experiment.rounds)))


def line(done: RoundReport, rounds: int) -> str:
    """Return a round in one line: its number, replies, seconds, metrics, and who was left out for which reason."""
    entry = round_entry(done)
    accepted = len(entry.cohort) - len(entry.rejected)
    head = f"round {entry.round} of {rounds}: {accepted} of {len(entry.cohort)} replies, {entry.seconds:.1f} s"
    metrics = [f"{name} {value:.4g}" for name, value in entry.metrics.items() if value is not None]
    left_out = [f"{reply.client} left out: {reply.reason}" for reply in entry.rejected]
    return "; ".join([head, *([", ".join(metrics)] if metrics else []), *left_out])


app = make_app(assign)
