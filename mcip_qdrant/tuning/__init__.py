"""Making such a model: the paper's two fine-tuning methods, and plain contrastive training."""
