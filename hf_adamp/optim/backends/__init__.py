"""How a step is computed: one file a backend, one interface, one chooser."""
