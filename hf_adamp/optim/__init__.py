"""The optimizers: AdamP, SGDP and the three-stage step under them. Knows torch only."""
