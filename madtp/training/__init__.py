"""What training with MADTP needs beyond the models."""
