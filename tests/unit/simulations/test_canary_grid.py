"""A grid with canary clients beside real ones: both answer through Flower's Message API, in the order of nodes."""

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from cloister.flower import array_record, views
from cloister.privacy.audits.canaries import Canaries
from cloister.privacy.noise import NoiseSource
from cloister.privacy.plan import Plan
from cloister.simulations.auditing.canary_grid import CanaryGrid
from cloister.simulations.engines.grid import EngineGrid, Executor, Job, Nodes, Outcome, Payload

SIZE, CANARIES, BOUND = 40, 8, 0.5


class Silence(Executor):
    """Real clients that answer with what they were sent."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def stage(self, messages: Sequence[Message]) -> list[Payload]:
        return [Payload(make=lambda: None) for _ in messages]

    def submit(self, jobs: Iterable[Job]) -> list[Job]:
        started = list(jobs)
        self.jobs += started
        return started

    def poll(self, timeout_s: float) -> list[Outcome]:
        done, self.jobs = self.jobs, []
        content = [RecordDict({"arrays": job.message.content["arrays"]}) for job in done]
        return [
            Outcome(job.message_id, Message(it, reply_to=job.message)) for job, it in zip(done, content, strict=True)
        ]

    def cancel(self, message_ids: set[str]) -> None: ...

    def close(self) -> None: ...


def test_canaries_answer_beside_real_clients_with_their_clipped_directions() -> None:
    values = {"unit": "client", "mechanism": "gaussian", "trust": "central", "sampler": "all", "population": 10}
    plan = Plan.of({**values, "noise_multiplier": 1.0, "clip": {"bound": BOUND}})
    config = ConfigRecord({"server-round": 1, "plan": json.dumps(plan.values()), "task": "any", "run": "one"})
    canaries = Canaries(seed=3, size=SIZE, count=CANARIES, unused=8)
    grid = CanaryGrid(EngineGrid(Nodes(names=("a", "b")), Silence()), canaries, NoiseSource(bytes(32)))
    assert [grid.name_of(node) for node in grid.get_node_ids()] == ["a", "b"] + [f"canary-{n:04d}" for n in range(8)]

    content = {"config": config, "arrays": array_record({"w": np.zeros((4, 10), np.float32)})}
    asked = [Message(RecordDict(content), dst_node_id=node, message_type="train") for node in (7, 2, 1, 10, 3)]
    replies = grid.send_and_receive(asked, timeout=5.0)

    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3, 7, 10]
    for reply, index in zip(replies, (None, None, 0, 4, 7), strict=True):
        arrays = reply.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        sent = views(arrays)["w"].ravel()
        expected = np.zeros(SIZE) if index is None else BOUND * canaries.direction(index)
        np.testing.assert_allclose(sent, expected, atol=1e-6)
        assert np.linalg.norm(sent) <= BOUND * (1 + 1e-6)
        assert index is None or np.linalg.norm(sent) == pytest.approx(BOUND, rel=1e-4)
