"""GRPO on TRL's trainer."""
