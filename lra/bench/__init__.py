"""What a training step takes: at several lengths, and where its time goes."""
