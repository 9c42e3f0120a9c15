"""AdamP and SGDP (Heo et al., ICLR 2021, arXiv 2006.08217) for Hugging Face Transformers."""
