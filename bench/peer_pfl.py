"""Apple's pfl (github.com/apple/pfl-research) on the bench's workload, set up as its own tutorials do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn

from cloister.bench.workload import BATCH, LEARNING_RATE, build, data_of, fit


class _Network(nn.Module):
    """The workload's network with the two methods that pfl asks for."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.network = build(parameters)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(images)
        return output

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Return nothing, so that pfl's evaluation of the first iteration costs nothing."""
        return {}


class _Reporter:
    """A pfl callback that reports the start of the rounds and the end of each."""

    def __init__(self, on_begin: Callable[[], None], on_round: Callable[[], None]) -> None:
        self._on_begin, self._on_round = on_begin, on_round

    def on_train_begin(self, *, model: Any) -> Any:
        self._on_begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        self._on_round()
        return False, Metrics()

    def on_train_end(self, *, model: Any) -> None:
        pass


def run(
    parameters: int, cohort: int, rounds: int, pool: int, on_begin: Callable[[], None], on_round: Callable[[], None]
) -> None:
    """Run federated averaging on ``pool`` users in this process; call ``on_round`` after each round.

    ``on_begin`` is called when all is ready for the first. Users are drawn in turn (pfl's recommended sampler), their
    records made when they are drawn. All have as many, so pfl's unweighted mean, its fastest, is the weighted one.
    """
    torch.set_num_threads(1)
    np.random.seed(0)  # pfl draws from NumPy's global generator
    fit(build(parameters), data_of(0))  # what torch imports for its first step is there, as it is for the others
    network = _Network(parameters)
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    users = FederatedDataset(
        lambda user: Dataset(data_of(user), user_id=str(user)), get_user_sampler("minimize_reuse", range(pool))
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LEARNING_RATE),
        NNEvalHyperParams(local_batch_size=None),
        [_Reporter(on_begin, on_round)],
        send_metrics_to_platform=False,
    )
