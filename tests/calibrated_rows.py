import torch


def calibrated_rows(n_rows, n_classes, spread=3.0):
    """Logits, and targets that are drawn with just the probabilities that the logits name."""
    logits = spread * torch.randn(n_rows, n_classes, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1).squeeze(1)
