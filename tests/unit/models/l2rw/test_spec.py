"""Every state-dict entry has the group that the normalisation policy and the head's setting ask for."""

from collections import Counter

import pytest
import torch

from cloister.models.l2rw.config import ModelConfig
from cloister.models.l2rw.spec import ReidSpec
from cloister.models.spec import Group, check_groups

POLICIES = ("averaged", "pooled", "local", "frozen", "group")


def made(**changes: object) -> tuple[ReidSpec, torch.nn.Module, dict[str, Group]]:
    spec = ReidSpec(ModelConfig(**{"width": 4, "blocks": (1, 2, 1, 1), "num_classes": 5, **changes}))  # type: ignore[arg-type]
    model = spec.build(torch.Generator().manual_seed(0))
    return spec, model, spec.groups(model)


@pytest.mark.parametrize("architecture", ["one-stream", "two-stream"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("head", ["shared", "local"])
def test_groups_cover_the_state_dict(architecture: str, policy: str, head: str) -> None:
    _, model, groups = made(architecture=architecture, normalisation=policy, head=head)
    check_groups(model, groups)
    assert list(groups) == list(model.state_dict())
    assert groups["head.weight"] is (Group.LOCAL if head == "local" else Group.SHARED)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, g in groups.items() if g in (Group.SHARED, Group.LOCAL) and "running" not in name}
    assert all(groups[name] is Group.SHARED for name in groups if "conv" in name)


@pytest.mark.parametrize(
    ("policy", "statistics", "affine", "neck"),
    [
        ("averaged", Group.BUFFER, Group.SHARED, Group.SHARED),
        ("pooled", Group.BUFFER, Group.SHARED, Group.SHARED),
        ("local", Group.LOCAL, Group.LOCAL, Group.LOCAL),
        ("frozen", Group.FROZEN, Group.FROZEN, Group.SHARED),
    ],
)
def test_batch_norm_policies(policy: str, statistics: Group, affine: Group, neck: Group) -> None:
    _, _, groups = made(normalisation=policy)
    by = Counter((name.rpartition(".")[2], group) for name, group in groups.items() if "norm" in name)
    assert set(by) == {
        ("weight", affine),
        ("bias", affine),
        ("running_mean", statistics),
        ("running_var", statistics),
    }
    assert groups["neck.running_mean"] is statistics
    assert groups["neck.weight"] is groups["neck.bias"] is neck


def test_shortcut_norms_are_norms() -> None:
    _, _, groups = made(normalisation="local")
    assert groups["stages.0.blocks.0.shortcut.1.weight"] is Group.LOCAL
    assert groups["stages.0.blocks.0.shortcut.0.weight"] is Group.SHARED


def test_pooled_statistics_pair_every_mean_with_its_variance() -> None:
    spec, model, groups = made(normalisation="pooled")
    pairs = spec.pooled_statistics(model)
    assert {name for pair in pairs for name in pair} == {n for n, group in groups.items() if group is Group.BUFFER}
    assert all(mean.replace("running_mean", "running_var") == variance for mean, variance in pairs)
    spec, model, _ = made(normalisation="averaged")
    assert spec.pooled_statistics(model) == ()
