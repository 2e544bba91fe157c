"""What a server and its clients must agree on about a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from cloister.errors import WeightsError


class Group(StrEnum):
    """What may happen to one state-dict entry.

    ``SHARED``: a parameter that is released and averaged. ``BUFFER``: a statistic (such as a BatchNorm mean) that
    is released and averaged, but takes no part in clipping, momentum or control variates. ``LOCAL``: stays at
    its client. ``FROZEN``: equal everywhere and never trained or sent.
    """

    SHARED = "shared"
    BUFFER = "buffer"
    LOCAL = "local"
    FROZEN = "frozen"


class ModelSpec(ABC):
    """A model family at one size: how to build it and what each state-dict entry is."""

    @abstractmethod
    def build(self, generator: torch.Generator) -> nn.Module:
        """Return a freshly initialised model; the same generator state gives the same weights."""

    @abstractmethod
    def groups(self, model: nn.Module) -> dict[str, Group]:
        """Return the group of every entry of ``model.state_dict()``."""

    def pooled_statistics(self, model: nn.Module) -> tuple[tuple[str, str], ...]:
        """Return the (mean, variance) buffer names that must be pooled as moments, not averaged one by one."""
        return ()

    def values(self) -> dict[str, Any] | None:
        """Return plain JSON values, from which :meth:`of` makes a specification that builds the same network.

        None: there are none, and whoever loads exported weights has to build the network.
        """
        return None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Return the specification that :meth:`values` described."""
        raise WeightsError(f"{cls.__name__}: cannot be read from a file")

    def rows(self) -> tuple[int, int] | None:
        """Return (number of classes, width) of class centres and head rows; None: the model has no such rows."""
        return None


def released(groups: Mapping[str, Group]) -> list[str]:
    """Return the names that travel between client and server, in state-dict order."""
    return [name for name, group in groups.items() if group in (Group.SHARED, Group.BUFFER)]


def check_groups(model: nn.Module, groups: Mapping[str, Group]) -> None:
    """Raise :class:`WeightsError` unless every state-dict entry has exactly one group."""
    state = set(model.state_dict())
    missing, unknown = sorted(state - set(groups)), sorted(set(groups) - state)
    if missing or unknown:
        raise WeightsError(
            f"parameter groups do not match the model: no group for {missing[:5]}, no entry for {unknown[:5]}; "
            "declare every state-dict entry in ModelSpec.groups()"
        )
