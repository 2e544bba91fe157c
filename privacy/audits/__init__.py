"""Attacks on what a client releases, each with a lower bound on the epsilon that it disproves or supports."""
