"""`thoughtcache compare-eviction`: the base model, untrained, under every eviction policy at equal floats."""
