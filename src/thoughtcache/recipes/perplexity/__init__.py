"""`thoughtcache perplexity`: how well texts are predicted under a bounded cache, beside the full one."""
