"""Measuring a model: the paper's protocols on a bundle, on a checkpoint, and on a collection in Qdrant."""
