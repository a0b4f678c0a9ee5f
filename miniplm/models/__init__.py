"""Causal language models: found and checked as files (`files`, `configuration`, `skeleton`), named by content (`identity`), loaded (`loading`)."""
