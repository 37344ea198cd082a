"""Evaluation: how well a policy does, with intervals. Training never imports this; reports do."""
