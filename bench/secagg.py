"""``cloister bench secagg``: what a client's part of secure aggregation costs, beside flwr's SecAgg+ and no security.

One core, one run. A client's masks are those of 10 million parameters and 50 neighbours: the agreement with each of
them, their masks and its own. flwr's are made by its own generator and added as its client does; they come from 32
bits of seed, so that they are a measure of speed and not of protection. Without security a client does nothing beside
training; the row beside is what the server does then, to add one client's vector. Shares are of the second of a
client's two secrets, among the same holders: what follows from their places alone is known from the first. A whole
cohort, 1,000 clients of a million parameters of which a tenth drop out, is summed once, by one core that does
everybody's work.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from cloister.bench import target
from cloister.bench.process import NotMeasured, measured
from cloister.bench.timing import ONE_THREAD, Seconds, row, timed
from cloister.privacy.noise import NoiseSource
from cloister.privacy.secagg.keys import KeyPair, Secret
from cloister.privacy.secagg.layout import FixedPoint
from cloister.privacy.secagg.masks import Stream, Words
from cloister.privacy.secagg.shares import join_seed, split_seed

PARAMETERS, NEIGHBOURS, THRESHOLD, HOLDERS = 10_000_000, 50, 26, 51
PLAIN, ENCODE = "no security: the server adds a vector", "a client's fixed point"
MASKS, MASKS_64 = "a client's masks, 32-bit words", "a client's masks, 64-bit words"
FLOWER_MASKS = "a client's masks, flwr"
SPLIT, JOIN = "Shamir 26 of 51, split 32 bytes", "Shamir 26 of 51, join 32 bytes"
FLOWER_SPLIT, FLOWER_JOIN = "Shamir 26 of 51, split, flwr", "Shamir 26 of 51, join, flwr"
COHORT_CLIENTS, COHORT_SERVER = "a cohort's clients, all of them", "a cohort's server"
COHORT = (1000, 1_000_000, 0.1)  # clients, parameters, dropouts
TRAFFIC = (100, 300_000, 0.0)
KINDS = (PLAIN, ENCODE, MASKS, MASKS_64, FLOWER_MASKS, SPLIT, JOIN, FLOWER_SPLIT, FLOWER_JOIN)
WHOLE = (COHORT_CLIENTS, COHORT_SERVER)

_TIMEOUT_S = 1200.0


def measure(console: Console) -> dict[str, Any]:
    """Return ``rows`` (``kind``, ``seconds``: median, ``spread``, ``repetitions``, ``why``) and ``targets``."""
    why, found = "", Seconds()
    try:
        found = measured(["-m", "cloister.bench.secagg"], timeout_s=_TIMEOUT_S, environment=ONE_THREAD)
        cohort, small = (_cohort(*numbers) for numbers in (COHORT, TRAFFIC))
        found |= {COHORT_CLIENTS: [cohort["clients"]], COHORT_SERVER: [cohort["server"]]}
        memory, traffic = cohort["memory"], small["traffic"]
    except NotMeasured as reason:
        why, memory, traffic = str(reason), None, None
    rows = [row(kind, found.get(kind, []), why) for kind in (*KINDS, *WHOLE)]
    seconds = {line["kind"]: line["seconds"] for line in rows}
    return {
        "rows": rows,
        "targets": [
            target(f"{MASKS}, {PARAMETERS:,} x {NEIGHBOURS}: s", seconds[MASKS], "<= 1.5"),
            target(f"{SPLIT}: ms", seconds[SPLIT] and seconds[SPLIT] * 1000, "<= 0.5"),
            target(f"traffic over plain, {TRAFFIC[0]} clients of {TRAFFIC[1]:,} parameters", traffic, "<= 1.2"),
            target("memory of the whole cohort: GiB", memory and memory / 2**30, "<= 4"),
        ],
    }


def _cohort(clients: int, size: int, dropouts: float) -> dict[str, float]:
    """Run a whole cohort in a process of its own, so that its memory is its own."""
    arguments = ["-m", "cloister.bench.secagg_cohort", str(clients), str(size), str(dropouts)]
    done: dict[str, float] = measured(arguments, timeout_s=_TIMEOUT_S, environment=ONE_THREAD)
    return done


def vectors(parameters: int, neighbours: int) -> dict[str, Callable[[], Any]]:
    """Return what is done with whole vectors, and returns them where they are new."""
    keys, peers = KeyPair.generate(), [KeyPair.generate().public for _ in range(neighbours)]
    reals = np.random.default_rng(0).uniform(-1, 1, parameters)
    sums, update = np.zeros(parameters, np.float32), reals.astype(np.float32)
    point, source = FixedPoint(bits=32, clip=1.0, clients=neighbours + 1), NoiseSource.fresh()
    whole = point.encode(reals, 1.0, source)

    def masks(bits: int) -> Any:
        stream = Stream(session=bytes(32), round=1, layout=bytes(32), bits=bits)
        vector: Words = whole.astype(stream.dtype)
        seeds = [keys.agree(peer, salt=bytes(32), info=b"mask") for peer in peers]
        half = neighbours // 2
        stream.apply(vector, "update", add=[Secret.fresh(), *seeds[:half]], subtract=seeds[half:])
        return vector

    return {
        PLAIN: lambda: np.add(sums, update, out=sums),
        ENCODE: lambda: point.encode(reals, 1.0, source),
        MASKS: lambda: masks(32),
        MASKS_64: lambda: masks(64),
        FLOWER_MASKS: lambda: _flowers_masks(whole[:-1], neighbours),
    }


def sharing() -> dict[str, Callable[[], Any]]:
    """Return what is done with one secret: split it, and join as many shares as it takes."""
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares

    secret, source = Secret.fresh(), NoiseSource.fresh()
    shares = split_seed(secret, THRESHOLD, range(1, HOLDERS + 1), source)
    content = bytes(secret.view())
    flowers = create_shares(content, THRESHOLD, HOLDERS)
    return {
        SPLIT: lambda: split_seed(secret, THRESHOLD, range(1, HOLDERS + 1), source),
        JOIN: lambda: join_seed(shares[:THRESHOLD]),
        FLOWER_SPLIT: lambda: create_shares(content, THRESHOLD, HOLDERS),
        FLOWER_JOIN: lambda: combine_shares(flowers[:THRESHOLD]),
    }


def _flowers_masks(whole: Any, neighbours: int) -> Any:
    """Add and subtract the masks of flwr's generator, modulo 2^32, as flwr's client does: in int64."""
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    vector = whole.astype(np.int64)
    for index in range(neighbours + 1):
        mask = pseudo_rand_gen(index.to_bytes(32), 1 << 32, [vector.shape])[0]
        vector = vector + mask if index <= neighbours // 2 else vector - mask
    return vector % (1 << 32)


def main() -> None:
    """Print the seconds of every kind as JSON."""
    found = timed(vectors(PARAMETERS, NEIGHBOURS), repetitions=3)
    for kind, call in sharing().items():  # each by itself: flwr's thread pools would disturb the others
        found |= timed({kind: call}, repetitions=50)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
