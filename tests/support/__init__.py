"""What the tests of the core share: tiny models, rollouts that end at different times, one comparison helper."""
