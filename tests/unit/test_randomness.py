"""The seed tree, against SHA-256 computed on its own."""

import hashlib
import random
from typing import Any

import numpy as np
import pytest
import torch

from cloister.randomness import SeedTree

TREE = SeedTree(experiment="reid-ci", seed=7)
LEAVES: list[dict[str, Any]] = [
    {"purpose": "model"},
    {"purpose": "order"},
    {"purpose": "order", "round": 1},
    {"purpose": "order", "round": 2},
    {"purpose": "order", "round": 1, "client": "cam1"},
    {"purpose": "order", "round": 1, "client": "cam2"},
    {"purpose": "order", "client": "1"},
    {"purpose": "cam1"},
]


def test_the_key_is_the_head_of_sha256_over_the_fields() -> None:
    text = b"reid-ci\x1f7\x1f3\x1fcam2\x1forder"
    head = hashlib.sha256(text).hexdigest()[:16]
    assert TREE.key(purpose="order", round=3, client="cam2") == int(head, 16)


def test_the_key_is_stable_over_versions() -> None:
    # printf 'reid-ci\x1f7\x1f0\x1f\x1fmodel' | sha256sum | cut -c1-16
    assert TREE.key(purpose="model") == 0x319852FE19AD8F8E


def test_different_leaves_and_trees_have_different_keys() -> None:
    trees = [TREE, SeedTree(experiment="reid-ci", seed=8), SeedTree(experiment="reid-uci", seed=7)]
    keys = [tree.key(**leaf) for tree in trees for leaf in LEAVES]
    assert len(set(keys)) == len(keys)
    # the fields are kept apart: neither digits nor names run into one another
    assert SeedTree(experiment="a", seed=11).key(purpose="x", round=1) != SeedTree(experiment="a", seed=1).key(
        purpose="x", round=11
    )
    assert SeedTree(experiment="a1", seed=1).key(purpose="x") != SeedTree(experiment="a", seed=11).key(purpose="x")
    assert TREE.key(purpose="ab", client="c") != TREE.key(purpose="b", client="ca")


def draw(kind: str, tree: SeedTree, **leaf: Any) -> bytes:
    if kind == "numpy":
        return tree.numpy(**leaf).bytes(16)
    return torch.randint(256, (16,), generator=tree.torch(**leaf), dtype=torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_leaf_is_one_stream_whatever_was_drawn_elsewhere(kind: str) -> None:
    first = [draw(kind, TREE, **leaf) for leaf in LEAVES]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = [draw(kind, SeedTree(experiment="reid-ci", seed=7), **leaf) for leaf in reversed(LEAVES)]
    assert first == again[::-1]
    assert len(set(first)) == len(LEAVES)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_global_generators_are_left_alone(kind: str) -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    draw(kind, TREE, purpose="order")
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_streams_are_those_of_the_libraries_own_seeding() -> None:
    key = TREE.key(purpose="order")
    assert TREE.numpy(purpose="order").random() == np.random.default_rng(key).random()
    expected = torch.rand(1, generator=torch.Generator().manual_seed(key % 2**63))
    assert torch.rand(1, generator=TREE.torch(purpose="order")) == expected
