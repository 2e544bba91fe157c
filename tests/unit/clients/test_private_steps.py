"""Private steps of a client: accounted as the plan says, and silent about data that cannot be used."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cloister.clients import private_steps
from cloister.clients.state import ClientState
from cloister.clients.task import PrivateTraining, Round, Task, Update
from cloister.errors import PlanError
from cloister.models.spec import Group, ModelSpec
from cloister.privacy.plan import Plan
from cloister.randomness import SeedTree

SAMPLERS: dict[str, dict[str, Any]] = {
    "poisson": {"rate": 0.3},
    "without-replacement": {"population": 20},
    "fixed": {"population": 20},
    "all": {},
}


def plan(**more: Any) -> Plan:
    values = {
        "unit": "subject",
        "mechanism": "dp-sgd",
        "sampler": "all",
        "steps": 3,
        "sample_size": 6,
        "noise_multiplier": 1.0,
        "clip": {"bound": 0.5},
    }
    return Plan.of({**values, **more})


class Spec(ModelSpec):
    def build(self, generator: torch.Generator) -> nn.Module:
        return nn.Linear(3, 2)

    def groups(self, model: nn.Module) -> dict[str, Group]:
        return dict.fromkeys(model.state_dict(), Group.SHARED)


class Toy(Task[Any]):
    """Records of six people; ``broken`` says in which fetch the data turn out to be damaged."""

    def __init__(self, broken: int = 99) -> None:
        super().__init__({}, Path())
        self.broken, self.fetched = broken, 0
        self.owners, self.seen = np.arange(6), set[int]()

    @property
    def spec(self) -> Spec:
        return Spec()

    def clients(self) -> list[str]:
        return ["a"]

    def load(self, client: str) -> Any:
        return torch.arange(18.0).reshape(6, 3) / 9

    def train(self, model: nn.Module, data: Any, round: Round) -> Update:
        raise NotImplementedError

    def private(self, model: nn.Module, data: Any, round: Round) -> PrivateTraining:
        def fetch(indices: Any) -> tuple[torch.Tensor, ...]:
            self.fetched += 1
            self.seen |= set(indices.tolist())
            if self.fetched > self.broken:
                raise OSError("anna-smith.jpg is truncated")
            return data[indices], torch.from_numpy(indices % 2)

        def losses(model: nn.Module, records: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return functional.cross_entropy(model(records[0]), records[1], reduction="none")

        units = self.owners[: 0 if data is None else len(data)]
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return PrivateTraining(units=units, fetch=fetch, losses=losses, optimiser=optimiser)


def trained(tmp_path: Path, task: Toy, data: Any, **more: Any) -> tuple[np.ndarray, Update, list[Any]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    given = Round(
        number=1,
        total=2,
        client="a",
        seeds=SeedTree(experiment="toy", seed=0),
        state=ClientState(tmp_path, 1),
        config={"run": "r"},
        received={},
        reference={},
        plan=plan(**more),
    )
    noted: list[Any] = []
    update = private_steps.train(task, model, lambda: data, given, lambda *line: noted.append(line))
    return model.weight.detach().numpy().copy(), update, noted


@pytest.mark.parametrize("broken", [0, 1, 2, 3])
def test_data_that_turn_out_damaged_at_any_step_leave_the_noise_alone(tmp_path: Path, broken: int) -> None:
    data = Toy().load("a")
    nothing, expected, _ = trained(tmp_path, Toy(), None)
    weights, update, noted = trained(tmp_path, Toy(broken), data)
    np.testing.assert_array_equal(weights, nothing)
    assert update == expected
    assert [name for _, name, _ in noted] == ["OSError"]
    whole, _, silent = trained(tmp_path, Toy(), data)
    assert not np.array_equal(whole, nothing)
    assert silent == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_accounted_as_the_plan_says(sampler: str) -> None:
    for unit, relation, steps, sampled, records in itertools.product(
        ("example", "subject"), ("add-remove", "replace-one", "zero-out"), (1, 4, 9), ("units", "records"), (1, 5)
    ):
        if unit == "example" and records > 1:
            continue
        more = {"unit": unit, "relation": relation, "steps": steps, "sampled": sampled, "records": records}
        made = plan(sampler=sampler, **SAMPLERS[sampler], **more)
        assert private_steps.steps_of(made).events == made.increment(2, 3)


def test_steps_are_made_of_the_plans_own_numbers() -> None:
    made = private_steps.steps_of(plan(sampler="poisson", rate=0.25, records=3, relation="replace-one"))
    assert made.denominator == 6.0  # the public number, whatever the rate
    assert made.bounds == {"": 0.5}
    assert (made.steps, made.noise_multiplier, made.records) == (3, 1.0, 3)
    layers = {"kind": "per-layer", "per_layer": {"weight": 0.5, "bias": 0.25}}
    assert private_steps.steps_of(plan(clip=layers)).bounds == {"weight": 0.5, "bias": 0.25}
    with pytest.raises(PlanError, match="sample_size"):
        private_steps.steps_of(plan(sample_size=0))


def test_where_records_are_drawn_a_person_has_no_more_than_the_plan_says(tmp_path: Path) -> None:
    class Crowded(Toy):
        """All records are of one person; ``used`` collects which of them were fetched."""

        def __init__(self) -> None:
            super().__init__()
            self.used: set[int] = set()

        def private(self, model: nn.Module, data: Any, round: Round) -> PrivateTraining:
            made = super().private(model, data, round)

            def fetch(indices: Any) -> tuple[torch.Tensor, ...]:
                self.used |= set(indices.tolist())
                return made.fetch(indices)

            return dataclasses.replace(made, units=np.zeros(len(made.units), np.int64), fetch=fetch)

    task = Crowded()
    trained(tmp_path, task, Toy().load("a"), sampled="records", records=2, sampler="all", steps=5)
    assert len(task.used) == 2


def test_where_records_are_drawn_nobodys_records_beyond_the_bound_are_ever_fetched(tmp_path: Path) -> None:
    task = Toy()
    task.owners = np.array([0, 1, 0, 0, 1, 0])
    trained(tmp_path, task, task.load("a"), sampled="records", records=2)
    kept = sorted(task.seen)
    assert [int(task.owners[index]) for index in kept].count(0) == 2
    assert [index for index in kept if task.owners[index] == 1] == [1, 4]
    trained(tmp_path, task, task.load("a"), sampled="records", records=2)
    assert sorted(task.seen) == kept  # the same ones in every round
