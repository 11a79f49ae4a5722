"""How a pair pool makes a candidate of two images."""
