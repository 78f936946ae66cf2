"""stemma: the family tree of language models, every branch of it running."""
