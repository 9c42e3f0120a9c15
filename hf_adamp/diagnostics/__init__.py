"""What AdamP does to a model: the log, the plots."""
