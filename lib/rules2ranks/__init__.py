"""Rules to Ranks: from cellular-automaton rules to the ranks of low-rank adapters."""

__version__ = "0.1.0"
