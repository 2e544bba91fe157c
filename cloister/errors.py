"""The one exception tree. Every message says what was expected, what was found, and the next step.

::

    CloisterError
     +-- ConfigError        100  an experiment, a setting or a command line
     +-- DataError          200  a file or folder of a data set
     |    +-- IsolationError 210 a client opened a file that is not its own
     +-- WeightsError       300  a weight file or a state dict
     +-- ReleaseError       400  a client's reply was refused (client, round, key)
     |    +-- QuorumError   410  too few valid replies in a round
     +-- EngineError        500  a worker, an actor or a cluster
     +-- RunError           600  a run folder, a checkpoint, a report
     +-- EvaluationError    700  features or distances that no metric can be computed from

The number is stable and printed with the message. A message never holds a secret, a gradient or an image.
"""


class CloisterError(Exception):
    """Base of every error that Cloister raises on purpose."""

    code = 1

    def __str__(self) -> str:
        """Return the message, preceded by its stable number."""
        return f"[E{self.code}] {super().__str__()}"


class ConfigError(CloisterError):
    """An experiment file, a setting or a command-line value cannot be used."""

    code = 100


class DataError(CloisterError):
    """A data set's file or folder is missing, corrupt, empty or too small."""

    code = 200


class IsolationError(DataError):
    """A client's process tried to open a file that belongs to another client."""

    code = 210


class WeightsError(CloisterError):
    """A weight file or a state dict does not fit the model."""

    code = 300


class ReleaseError(CloisterError):
    """A client's reply is not what the round's plan allows."""

    code = 400


class QuorumError(ReleaseError):
    """Fewer valid replies arrived before the deadline than the quorum asks for."""

    code = 410


class EngineError(CloisterError):
    """A worker process, a Ray actor or a cluster failed."""

    code = 500


class RunError(CloisterError):
    """A run folder, a checkpoint or a report cannot be read or written."""

    code = 600


class EvaluationError(CloisterError):
    """Features or distances from which no honest metric can be computed."""

    code = 700
