"""Causal language models: found and checked as files (`files`), named by content (`identity`), loaded (`loading`)."""
