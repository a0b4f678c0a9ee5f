"""Training: what is trained on (`methods`), in which order (`data`), how (`schedule`, `loop`), and what is kept (`checkpoints`)."""
