"""Gives work to the workers of a Prefect work pool, and sees to it that every piece is done once.

All that is remembered is Prefect's (flow runs, found by their tags) and the storage root's (verified manifests): a process
that ends here is replaced by any other that starts again.
"""
