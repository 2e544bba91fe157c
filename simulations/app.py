"""The Flower ServerApp of ``flwr run``: the same server as ``cloister run``, set up from Flower's run configuration.

The keys in ``[tool.flwr.app.config]``: ``experiment`` (name), ``preset``, ``data`` (folder of the data set, for server
and clients alike), ``overrides`` (``key.path=value``, separated by semicolons).
"""

from flwr.app import Context

from cloister.errors import ConfigError
from cloister.server.app import Assignment, make_app
from cloister.simulations.experiment import Experiment
from cloister.simulations.prepare import prepare


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
        return prepare(experiment).assignment(None, lambda done: None)


app = make_app(assign)
