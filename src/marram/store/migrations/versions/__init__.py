"""One file a revision, in order. A released revision is never edited: a further one changes what it did."""
