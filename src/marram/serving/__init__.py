"""Models served to others: several in one process, batched, swapped with no request dropped; the open protocol."""
