"""Rules to Ranks: from cellular-automaton rules to LoRA ranks, in notebooks that run."""

__version__ = "0.1.0"
