"""Prefect flows: the order of the stages and the fan-out over shards, nothing else. A flow's file, function and name agree."""
