"""Questions that are asked of an adapter: what does it remember, how far back."""
