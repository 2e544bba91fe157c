"""A client's secret noise: one key per client, made once by the operating system, kept where its memory is."""

from pathlib import Path

from cloister.errors import PrivacyError
from cloister.privacy.noise import NoiseSource
from cloister.privacy.sealing import KEY_NAME, machine_key


def noise_of(folder: Path | None, run: str, round: int) -> NoiseSource:
    """Return the noise of one round of one run, the same whenever it is asked for.

    ``folder``: the client's private memory; without one, a round that is run again would draw other noise for the same
    release, so :class:`~cloister.errors.PrivacyError` is raised. A ledger makes sure that a (run, round) has one
    content alone.
    """
    return NoiseSource(key_of(folder)).fork(run, round)


def key_of(folder: Path | None) -> bytes:
    """Return the client's own secret, made on first use; raises :class:`PrivacyError` without a folder to keep it."""
    if folder is None:
        raise PrivacyError(
            "noise: expected a state folder, in which the key is kept, found none; set `state` in the node's "
            "configuration"
        )
    return machine_key(folder / KEY_NAME)
