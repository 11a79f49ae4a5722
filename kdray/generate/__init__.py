"""Image generators that are trained against a student alone (IDEAL, ICLR 2023). The teacher is never asked."""
