"""Adapters to Transformers: optimizer names, options, Trainer. Only here is Transformers known."""
