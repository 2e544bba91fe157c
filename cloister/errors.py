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
     +-- PrivacyError       800  a privacy guarantee cannot be given or kept; always fails closed
          +-- PlanError     810  a privacy plan, or an event of one, is unsound
          +-- PolicyError   820  a site's own policy forbids what was asked for, or cannot be read
          +-- LedgerError   830  a ledger cannot be read or written, was tampered with, or the budget is spent
          +-- AuditError    840  an audit cannot be run on what it was given
          +-- SecureSumError 850 a secure sum cannot be formed, or a party of it deviates from the protocol
          +-- TranscriptError 860 a transcript cannot be read, written or continued

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


class PrivacyError(CloisterError):
    """A privacy guarantee cannot be given or kept. Never caught and passed over."""

    code = 800


class PlanError(PrivacyError):
    """A privacy plan, or an event of one, is unsound."""

    code = 810


class PolicyError(PrivacyError):
    """A site's own policy forbids what was asked for, or cannot be read."""

    code = 820


class LedgerError(PrivacyError):
    """A ledger cannot be read or written, was tampered with, or has no budget left."""

    code = 830


class AuditError(PrivacyError):
    """An audit cannot be run on what it was given."""

    code = 840


class SecureSumError(PrivacyError):
    """A secure sum cannot be formed, or a party of it deviates from the protocol."""

    code = 850


class TranscriptError(PrivacyError):
    """A run's transcript cannot be read, written or continued."""

    code = 860
