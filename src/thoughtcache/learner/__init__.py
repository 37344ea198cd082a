"""The second execution of the policy: sampled thoughts are repeated, with gradient, at flat memory."""
