"""Prefect tasks: each one call of the library, with retries, a name to search for, and progress.

The truth about a piece of work is its own verified manifest at the storage root, never Prefect's cache: every
task looks there first, so tasks are not cached (`NO_CACHE`) and may be run again at any time.
"""
