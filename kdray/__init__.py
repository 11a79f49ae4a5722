"""kdray: distil a black-box image classifier with as few paid queries as possible."""
