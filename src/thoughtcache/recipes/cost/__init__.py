"""`thoughtcache cost`: what a training step costs, phase by phase, beside plain LoRA in the same run."""
