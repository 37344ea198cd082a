"""Training: cache distillation, GRPO under the bounded cache, and the rewards."""
