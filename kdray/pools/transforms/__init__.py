"""What is done to each image of a pair before the two are blended."""
