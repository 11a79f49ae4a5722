"""What pages share, of a run and of a sweep: their look, the template around them, and the style of their figures."""
