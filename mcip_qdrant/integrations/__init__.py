"""Adapters for the frameworks that applications already use. Each needs its own extra; none is imported by the rest."""
