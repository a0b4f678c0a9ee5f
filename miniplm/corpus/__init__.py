"""A corpus: documents of the sources, packed into sequences, in shards by split."""
