"""The first execution of the policy: tokens are drawn one by one under the bounded cache, in slots that refill."""
