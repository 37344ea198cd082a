"""Planning: memory and arithmetic of a rollout, in closed form and measured."""
