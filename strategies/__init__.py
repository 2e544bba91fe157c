"""Strategies: how the releases of a round become the next model.

``config`` and ``quorum`` are light (no torch, no Flower) and are what an experiment file is validated with;
``registry.build`` makes a strategy from such a configuration; ``base`` is the loop that all strategies share.
"""
