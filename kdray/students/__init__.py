"""Students (and local teachers): networks, losses, training, evaluation, files."""
